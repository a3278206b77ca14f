//! Who a request comes from: a client certificate, a token, or nobody.
//!
//! Guarantees: a certificate counts only if TLS checked it against the cluster's authority; a token only
//! if we signed it, it has not expired, and what it is bound to still exists. Bad credentials are
//! refused, never taken for none.

use http::{HeaderMap, header::AUTHORIZATION};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use api::status::Failure;

use crate::{app::App, authz::User};

const KNOWN: &str = "system:authenticated";

/// The user of a client certificate: CN is the name, each O a group.
pub(crate) fn certificate_user(cert: &CertificateDer<'_>) -> Option<User> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let subject = cert.subject();
    let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().ok().map(str::to_owned);
    let name = subject.iter_common_name().next().and_then(text).filter(|n| !n.is_empty())?;
    let mut groups: Vec<String> = subject.iter_organization().filter_map(text).collect();
    groups.push(KNOWN.to_owned());
    Some(User { name, groups, ..User::default() })
}

/// Decides who asks.
///
/// # Errors
/// `Unauthorized` for a token that does not count.
pub(crate) fn authenticate(
    app: &App,
    certificate: Option<&User>,
    headers: &HeaderMap,
) -> Result<User, Failure> {
    if let Some(name) = headers.keys().find(|k| k.as_str().starts_with("impersonate-")) {
        // To ignore it would mean to do with full rights what was meant to be done with fewer.
        let why = format!("impersonation ({name}) is not supported by this server yet");
        return Err(Failure::forbidden_path(&why));
    }
    if let Some(user) = certificate {
        return Ok(user.clone());
    }
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(User::anonymous()) };
    let token = header.to_str().ok().and_then(|h| {
        let (scheme, token) = h.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    match token {
        Some(token) => token_user(app, token, &[]).map(|(user, _)| user).map_err(|why| {
            tracing::debug!(why, "a bearer token was refused");
            Failure::unauthorized()
        }),
        None => Err(Failure::unauthorized()),
    }
}

/// The user of a service-account token, and the audiences it is good for among those wanted.
///
/// # Errors
/// Why it does not count.
pub(crate) fn token_user(
    app: &App,
    token: &str,
    audiences: &[String],
) -> Result<(User, Vec<String>), &'static str> {
    let claims = app.tokens.verify(token, audiences)?;
    let private = &claims.kubernetes;
    let uid_of = |plural: &str, namespace: &str, name: &str| -> Option<String> {
        let row = api::registry::find("", "v1", plural)?;
        let entry = app.cached(row, namespace, name).ok()?;
        Some(api::meta::uid(entry.facts()).to_owned())
    };
    let account = &private.serviceaccount;
    if uid_of("serviceaccounts", &private.namespace, &account.name).as_deref() != Some(&account.uid) {
        return Err("its service account is gone");
    }
    let mut extra =
        vec![("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={}", claims.jti)])];
    if let Some(pod) = &private.pod {
        if uid_of("pods", &private.namespace, &pod.name).as_deref() != Some(&pod.uid) {
            return Err("its pod is gone");
        }
        extra.push(("authentication.kubernetes.io/pod-name".to_owned(), vec![pod.name.clone()]));
        extra.push(("authentication.kubernetes.io/pod-uid".to_owned(), vec![pod.uid.clone()]));
    }
    if let Some(secret) = &private.secret
        && uid_of("secrets", &private.namespace, &secret.name).as_deref() != Some(&secret.uid)
    {
        return Err("its secret is gone");
    }
    if let Some(node) = &private.node {
        extra.push(("authentication.kubernetes.io/node-name".to_owned(), vec![node.name.clone()]));
        extra.push(("authentication.kubernetes.io/node-uid".to_owned(), vec![node.uid.clone()]));
    }
    let wanted = if audiences.is_empty() { vec![app.config.issuer.clone()] } else { audiences.to_vec() };
    let good = claims.aud.iter().filter(|a| wanted.contains(a)).cloned().collect();
    let user = User {
        name: format!("system:serviceaccount:{}:{}", private.namespace, account.name),
        uid: account.uid.clone(),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{}", private.namespace),
            KNOWN.to_owned(),
        ],
        extra,
    };
    Ok((user, good))
}
