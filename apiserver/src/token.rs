//! Service-account tokens: signed here, checked here.
//!
//! Guarantees: ES256 only; issuer, expiry and audience are always checked.
//! Caveat: whether the objects that a token is bound to still exist is `authn`'s to look up.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::config::StartError;

/// A reference to an object as tokens carry it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bound {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) uid: String,
}

/// The claim `kubernetes.io`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Private {
    pub(crate) namespace: String,
    pub(crate) serviceaccount: Bound,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Bound>,
}

/// A token's claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) sub: String,
    pub(crate) aud: Vec<String>,
    pub(crate) exp: u64,
    pub(crate) iat: u64,
    pub(crate) nbf: u64,
    pub(crate) jti: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) kubernetes: Private,
}

/// Signs and checks.
pub(crate) struct Tokens {
    issuer: String,
    sign: EncodingKey,
    check: DecodingKey,
}

impl Tokens {
    pub(crate) fn new(issuer: &str, private_pem: &str, public_pem: &str) -> Result<Tokens, StartError> {
        let key = |what| move |source| StartError::Tls { what, source: Box::new(source) };
        Ok(Tokens {
            issuer: issuer.to_owned(),
            sign: EncodingKey::from_ec_pem(private_pem.as_bytes())
                .map_err(key("the service-account signing key"))?,
            check: DecodingKey::from_ec_pem(public_pem.as_bytes())
                .map_err(key("the service-account public key"))?,
        })
    }

    /// Signs claims; issuer and id are set here.
    pub(crate) fn sign(&self, mut claims: Claims) -> Result<String, jsonwebtoken::errors::Error> {
        claims.iss.clone_from(&self.issuer);
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.sign)
    }

    /// Checks a token's signature, issuer, times and audience (ours, if none is given).
    pub(crate) fn verify(&self, token: &str, audiences: &[String]) -> Result<Claims, &'static str> {
        let mut rules = Validation::new(Algorithm::ES256);
        rules.leeway = 10;
        rules.validate_nbf = true;
        rules.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        rules.set_issuer(&[&self.issuer]);
        if audiences.is_empty() {
            rules.set_audience(&[&self.issuer]);
        } else {
            rules.set_audience(audiences);
        }
        let data = jsonwebtoken::decode::<Claims>(token, &self.check, &rules).map_err(|e| {
            use jsonwebtoken::errors::ErrorKind;
            match e.kind() {
                ErrorKind::ExpiredSignature => "it has expired",
                ErrorKind::InvalidAudience => "it is for another audience",
                ErrorKind::InvalidIssuer => "it has another issuer",
                ErrorKind::InvalidSignature => "its signature is not ours",
                _ => "it is not a token of this cluster",
            }
        })?;
        let claims = data.claims;
        let private = &claims.kubernetes;
        let subject = format!("system:serviceaccount:{}:{}", private.namespace, private.serviceaccount.name);
        if claims.sub != subject { Err("its subject is not its service account") } else { Ok(claims) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki::ClusterPki::open_or_create(dir.path()).unwrap();
        let key = pki.service_account_key();
        let tokens = Tokens::new("https://issuer", &key.key_pem, &key.cert_pem).unwrap();
        (dir, tokens)
    }

    fn claims(aud: &str, exp: i64) -> Claims {
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
        Claims {
            iss: String::new(),
            sub: "system:serviceaccount:a:b".into(),
            aud: vec![aud.into()],
            exp: now.checked_add_signed(exp).unwrap(),
            iat: now,
            nbf: now,
            jti: "id".into(),
            kubernetes: Private {
                namespace: "a".into(),
                serviceaccount: Bound { name: "b".into(), uid: "u".into() },
                pod: None,
                node: None,
                secret: None,
            },
        }
    }

    #[test]
    fn only_our_own_unexpired_tokens_for_us_count() {
        let (_dir, ours) = tokens();
        let (_other, theirs) = tokens();
        let good = ours.sign(claims("https://issuer", 600)).unwrap();
        assert!(ours.verify(&good, &[]).is_ok());
        assert_eq!(theirs.verify(&good, &[]), Err("its signature is not ours"));
        assert_eq!(ours.verify(&good, &["vault".into()]), Err("it is for another audience"));
        let old = ours.sign(claims("https://issuer", -60)).unwrap();
        assert_eq!(ours.verify(&old, &[]), Err("it has expired"));
        let vault = ours.sign(claims("vault", 600)).unwrap();
        assert_eq!(ours.verify(&vault, &[]), Err("it is for another audience"));
        assert!(ours.verify(&vault, &["vault".into()]).is_ok());
        let mut wrong = claims("https://issuer", 600);
        wrong.sub = "system:serviceaccount:a:other".into();
        let wrong = ours.sign(wrong).unwrap();
        assert!(ours.verify(&wrong, &[]).is_err());
        // "alg": "none" with our claims and no signature.
        let body = good.split('.').nth(1).unwrap();
        assert!(ours.verify(&format!("eyJhbGciOiJub25lIn0.{body}."), &[]).is_err());
    }
}
