//! Registries behind an HTTP proxy.
//!
//! Only HTTPS goes through it, in a tunnel: the proxy sees host names, no content and no credentials.
//! Plain HTTP is for the loopback interface and hosts named in a `hosts.toml`, which are reached directly.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use tower::Service;

use super::hosts::is_loopback;
use super::http::Resolver;

/// A proxy for HTTPS, and the hosts that are reached without it.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// E.g. `http://user:password@proxy.example:3128`.
    pub https: String,
    /// Hosts, domains and address ranges, separated by commas, as in `NO_PROXY`.
    pub no: String,
}

impl Proxy {
    /// Takes `HTTPS_PROXY`, else `ALL_PROXY`, and `NO_PROXY` from the environment, in upper or lower case.
    pub fn from_env() -> Option<Proxy> {
        let get = |names: [&str; 2]| {
            names.into_iter().find_map(|n| std::env::var(n).ok()).filter(|v| !v.is_empty())
        };
        let https = get(["HTTPS_PROXY", "https_proxy"]).or_else(|| get(["ALL_PROXY", "all_proxy"]))?;
        Some(Proxy { https, no: get(["NO_PROXY", "no_proxy"]).unwrap_or_default() })
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may have a password in it.
        let host = self.https.rsplit('@').next().unwrap_or_default();
        write!(f, "Proxy({host}, except {})", self.no)
    }
}

/// Connects directly, or by a tunnel through the proxy.
#[derive(Clone)]
pub(super) struct Connector {
    direct: HttpConnector<Resolver>,
    proxy: Option<std::sync::Arc<Matcher>>,
}

impl Connector {
    pub(super) fn new(direct: HttpConnector<Resolver>, proxy: Option<&Proxy>) -> Connector {
        let matcher =
            |proxy: &Proxy| Matcher::builder().https(proxy.https.clone()).no(proxy.no.clone()).build();
        Connector { direct, proxy: proxy.map(matcher).map(std::sync::Arc::new) }
    }
}

type Connection = <HttpConnector<Resolver> as Service<Uri>>::Response;

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::poll_ready(&mut self.direct, context).map_err(Into::into)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let loopback = target.host().is_some_and(is_loopback);
        let through = self.proxy.as_ref().filter(|_| !loopback).and_then(|proxy| proxy.intercept(&target));
        let Some(through) = through else {
            let connect = Service::call(&mut self.direct, target);
            return Box::pin(async move { Ok(connect.await?) });
        };
        let mut tunnel = Tunnel::new(through.uri().clone(), self.direct.clone());
        if let Some(auth) = through.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        let connect = Service::call(&mut tunnel, target);
        Box::pin(async move { connect.await.map_err(|err| format!("through the proxy: {err}").into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_passwords() {
        let proxy = Proxy { https: "http://u:secret@proxy:3128".into(), no: "a.io".into() };
        assert_eq!(format!("{proxy:?}"), "Proxy(proxy:3128, except a.io)");
    }
}
