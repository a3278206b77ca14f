//! Service-account tokens for projected volumes: asked for once, renewed at 80 % of their life.
//!
//! Guarantees: a token is bound to its pod, so it dies with it. Nothing is written to a disk.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;

use super::payload::TokenWish;
use crate::pod::step::{after, until};
use crate::pod::view::PodKey;

/// The tokens of one pod.
#[derive(Debug, Default)]
pub struct Tokens {
    held: BTreeMap<TokenWish, Held>,
}

#[derive(Debug)]
struct Held {
    token: String,
    renew_at: Timestamp,
}

/// Why a token could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The apiserver refused or did not answer.
    #[error("failed to fetch token for service account \"{account}\"")]
    Request {
        /// The account.
        account: String,
        /// What the apiserver said.
        source: Box<kube::Error>,
    },
    /// The answer had no token.
    #[error("the apiserver gave no token for service account \"{0}\"")]
    Empty(String),
    /// There is no apiserver.
    #[error(
        "service account tokens need an apiserver, and this kubelet runs standalone: remove the serviceAccountToken projection"
    )]
    Standalone,
}

impl Tokens {
    /// Makes sure that every wish has a token that is not due for renewal.
    pub async fn renew(
        &mut self,
        client: Option<&kube::Client>,
        pod: &PodKey,
        wishes: Vec<TokenWish>,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        self.held.retain(|wish, _| wishes.contains(wish));
        for wish in wishes {
            if self.held.get(&wish).is_some_and(|h| h.renew_at > now) {
                continue;
            }
            let client = client.ok_or(TokenError::Standalone)?;
            let held = request(client, pod, &wish, now).await?;
            self.held.insert(wish, held);
        }
        Ok(())
    }

    /// The tokens by wish.
    pub fn all(&self) -> BTreeMap<TokenWish, String> {
        self.held.iter().map(|(wish, held)| (wish.clone(), held.token.clone())).collect()
    }

    /// When the next one has to be renewed.
    pub fn next_renewal(&self) -> Option<Timestamp> {
        self.held.values().map(|h| h.renew_at).min()
    }
}

async fn request(
    client: &kube::Client,
    pod: &PodKey,
    wish: &TokenWish,
    now: Timestamp,
) -> Result<Held, TokenError> {
    let accounts: kube::Api<ServiceAccount> = kube::Api::namespaced(client.clone(), &pod.namespace);
    let body = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: (!wish.audience.is_empty()).then(|| vec![wish.audience.clone()]),
            expiration_seconds: Some(wish.seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod.name.clone()),
                uid: Some(pod.uid.to_string()),
            }),
        }),
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(&wish.account, &PostParams::default(), &body)
        .await
        .map_err(|err| TokenError::Request { account: wish.account.clone(), source: Box::new(err) })?;
    let status = answer.status.unwrap_or_default();
    match (status.token.filter(|t| !t.is_empty()), status.expiration_timestamp) {
        (Some(token), Some(end)) => Ok(Held { token, renew_at: renew_at(now, end.0) }),
        _ => Err(TokenError::Empty(wish.account.clone())),
    }
}

/// 80 % of the way to the end, and at least every 24 hours.
fn renew_at(now: Timestamp, end: Timestamp) -> Timestamp {
    let life = until(now, end).min(std::time::Duration::from_secs(30 * 3600));
    after(now, life * 4 / 5)
}
