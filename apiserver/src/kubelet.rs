//! Calling a node's kubelet.
//!
//! Guarantees: only addresses that the node itself reported are called, never link-local, multicast or unspecified ones
//! (cloud metadata lives there); the kubelet must show a certificate of the cluster's authority for
//! that very address; no redirect is followed.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use api::{meta, registry, status::Failure};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::app::App;

const DIAL: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 10250;

type Outgoing = UnsyncBoxBody<Bytes, hyper::Error>;

/// Calls kubelets.
pub(crate) struct KubeletClient {
    tls: TlsConnector,
}

impl KubeletClient {
    pub(crate) fn new(tls: ClientConfig) -> KubeletClient {
        KubeletClient { tls: TlsConnector::from(Arc::new(tls)) }
    }

    /// Sends one request to a kubelet over a connection of its own.
    pub(crate) async fn send(
        &self,
        address: SocketAddr,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Failure> {
        let failed = |what: &str, err: &dyn std::fmt::Display| {
            Failure::new(502, "BadGateway", format!("error dialing backend: {what} {address}: {err}"))
        };
        let dial = async {
            let tcp = TcpStream::connect(address).await.map_err(|e| failed("connect to", &e))?;
            let _ = tcp.set_nodelay(true);
            let name = ServerName::IpAddress(address.ip().into());
            self.tls.connect(name, tcp).await.map_err(|e| failed("TLS with", &e))
        };
        let stream = tokio::time::timeout(DIAL, dial).await.map_err(|_| {
            Failure::new(504, "Timeout", format!("error dialing backend: {address} does not answer"))
        })??;
        let host = HeaderValue::from_str(&address.to_string()).expect("an address is a header value");
        request.headers_mut().insert(header::HOST, host);
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed("speak with", &e))?;
        tokio::spawn(async move {
            if let Err(err) = connection.with_upgrades().await {
                tracing::debug!(%address, error = %err, "a connection to a kubelet broke");
            }
        });
        sender.send_request(request).await.map_err(|e| failed("ask", &e))
    }
}

impl App {
    /// Where the kubelet of a node listens.
    pub(crate) fn kubelet_address(&self, node: &str) -> Result<SocketAddr, Failure> {
        let row = registry::find("", "v1", "nodes").expect("core resources are served");
        let entry = self.cached(row, "", node)?;
        address(&entry.value()).map_err(|why| Failure::unavailable(format!("node {node}: {why}")))
    }
}

/// Reads a kubelet's address from its node.
fn address(node: &Value) -> Result<SocketAddr, String> {
    let addresses = meta::at(node, &["status", "addresses"]).and_then(Value::as_array);
    let of_type = |wanted: &str| {
        addresses.into_iter().flatten().find_map(|a| {
            (meta::str_at(a, &["type"]) == wanted)
                .then(|| meta::str_at(a, &["address"]).parse::<IpAddr>().ok())?
        })
    };
    let ip = of_type("InternalIP")
        .or_else(|| of_type("ExternalIP"))
        .ok_or("it has reported no address; is its kubelet running?")?;
    let forbidden = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    if forbidden || ip.is_multicast() || ip.is_unspecified() {
        return Err(format!("its address {ip} may not be called"));
    }
    let port = meta::at(node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    let port = match port.and_then(Value::as_u64) {
        None | Some(0) => DEFAULT_PORT,
        Some(port) => u16::try_from(port).map_err(|_| format!("its kubelet's port {port} is not one"))?,
    };
    Ok(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(ip: &str, port: u64) -> Result<String, String> {
        let node = json!({"status": {"addresses": [{"type": "Hostname", "address": "n"},
            {"type": "InternalIP", "address": ip}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
        address(&node).map(|a| a.to_string())
    }

    #[test]
    fn only_sensible_addresses_are_called() {
        assert_eq!(check("10.1.2.3", 10251), Ok("10.1.2.3:10251".into()));
        assert_eq!(check("fd00::1", 0), Ok("[fd00::1]:10250".into()));
        for bad in
            ["169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0", "::", "::ffff:169.254.169.254", "node-1"]
        {
            assert!(check(bad, 10250).is_err(), "{bad}");
        }
        assert!(check("10.1.2.3", 70000).is_err());
    }
}
