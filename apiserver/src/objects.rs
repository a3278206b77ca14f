//! Reading one object and changing it: the only way to the store for everything else.
//!
//! Guarantees: a read sees every write that was answered before it began. A change is decided on
//! the stored object and committed only if that is still the stored one; else it is decided
//! again. Objects are stored without `resourceVersion` and `managedFields`.

use std::{sync::Arc, time::Duration};

use api::{registry::Resource, status::Failure};
use bytes::Bytes;
use serde_json::Value;
use store::{Condition, KeyValue, Op, StoreError, Txn, TxnOutcome};

use crate::{allocate, app::App, cache, entry::Entry, keys};

/// How long a request waits for the cache to reach a revision.
pub(crate) const CATCH_UP: Duration = Duration::from_secs(3);
const ATTEMPTS: usize = 24;

/// What a change comes to.
pub(crate) enum Step {
    /// The object becomes this.
    Put(Value),
    /// The object goes.
    Remove,
}

/// What became of a change.
pub(crate) enum Changed {
    /// The object as it is stored now.
    Stored(Value),
    /// The object is gone; this was its last state.
    Removed(Value),
}

impl Changed {
    /// The object, stored or gone.
    pub(crate) fn into_value(self) -> Value {
        match self {
            Changed::Stored(v) | Changed::Removed(v) => v,
        }
    }
}

/// Maps a store's error to an answer.
pub(crate) fn store_failure(err: StoreError) -> Failure {
    match err {
        StoreError::Compacted { .. } => {
            Failure::expired("The resourceVersion for the provided request is too old.")
        }
        StoreError::FutureRevision { requested, current } => cache::too_new(requested, current),
        StoreError::BadKey { .. } => Failure::bad_request(err.to_string()),
        StoreError::Closed => Failure::unavailable("the server is shutting down"),
        StoreError::Engine { .. } => {
            tracing::error!(error = ?err, "the store failed");
            Failure::internal("the store failed; see the server's log")
        }
    }
}

impl App {
    /// Waits until the cache has seen all that is committed.
    pub(crate) async fn fresh(&self) -> Result<(), Failure> {
        let current = self.store.current_revision().await.map_err(store_failure)?;
        self.at_least(current).await
    }

    /// Waits until the cache has seen `revision`.
    pub(crate) async fn at_least(&self, revision: u64) -> Result<(), Failure> {
        if self.cache.revision() >= revision || self.cache.wait(revision, CATCH_UP).await {
            return Ok(());
        }
        Err(cache::too_new(revision, self.cache.revision()))
    }

    /// One object's entry, or `NotFound`.
    pub(crate) fn cached(
        &self,
        row: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Entry>, Failure> {
        self.cache
            .get(row.storage, &keys::object(row, namespace, name))
            .ok_or_else(|| Failure::not_found(row, name))
    }

    /// One object, as fresh as can be.
    pub(crate) async fn load(
        &self,
        row: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Value, Failure> {
        self.fresh().await?;
        Ok(self.cached(row, namespace, name)?.present(row))
    }

    /// Stores a new object, in one transaction with `also`. The answer carries its resourceVersion.
    pub(crate) async fn insert(
        &self,
        row: &'static Resource,
        object: Value,
        mut also: Txn,
    ) -> Result<Value, Failure> {
        let name = api::meta::name(&object).to_owned();
        let key = keys::object(row, api::meta::namespace(&object), &name);
        let mut txn = Txn::create(key.clone(), encode(&object));
        txn.compares.append(&mut also.compares);
        txn.ops.append(&mut also.ops);
        match self.store.txn(txn).await.map_err(store_failure)? {
            TxnOutcome::Committed { revision } => Ok(with_revision(object, revision)),
            TxnOutcome::Conflict { key: at, .. } if at == key.as_bytes() => {
                Err(Failure::already_exists(row, &name))
            }
            TxnOutcome::Conflict { .. } => Err(Failure::conflict(
                row,
                &name,
                "something that it depends on changed meanwhile; please try again",
            )),
        }
    }

    /// Changes one object by a pure decision, which is asked again whenever the object changed meanwhile.
    /// A dry run only decides.
    pub(crate) async fn modify(
        &self,
        row: &'static Resource,
        namespace: &str,
        name: &str,
        dry_run: bool,
        mut decide: impl FnMut(&Value) -> Result<Step, Failure>,
    ) -> Result<Changed, Failure> {
        let key = keys::object(row, namespace, name);
        self.fresh().await?;
        let entry = self.cached(row, namespace, name)?;
        let (mut revision, mut stored) = (entry.revision, entry.present(row));
        for _ in 0..ATTEMPTS {
            let (txn, object) = match decide(&stored)? {
                Step::Put(mut object) => {
                    api::meta::set(&mut object, "resourceVersion", revision.to_string());
                    if object == stored {
                        return Ok(Changed::Stored(stored));
                    }
                    if dry_run {
                        return Ok(Changed::Stored(object));
                    }
                    let txn = Txn::update(key.clone(), revision, encode(&object));
                    (with_claims(txn, row, Some(&stored), Some(&object)), Some(object))
                }
                Step::Remove if dry_run => return Ok(Changed::Removed(stored)),
                Step::Remove => {
                    let txn = Txn::delete(key.clone(), revision);
                    (with_claims(txn, row, Some(&stored), None), None)
                }
            };
            match self.store.txn(txn).await.map_err(store_failure)? {
                TxnOutcome::Committed { revision } => {
                    return Ok(match object {
                        Some(object) => Changed::Stored(with_revision(object, revision)),
                        None => Changed::Removed(with_revision(stored, revision)),
                    });
                }
                TxnOutcome::Conflict { key: at, current } if at == key.as_bytes() => {
                    let Some(kv) = current else { return Err(Failure::not_found(row, name)) };
                    (revision, stored) = decode(row, &kv)?;
                }
                TxnOutcome::Conflict { key: at, .. } => return Err(allocate::taken(row, name, &at)),
            }
        }
        Err(Failure::conflict(row, name, "the object is changed too often; please try again"))
    }
}

fn decode(row: &Resource, kv: &KeyValue) -> Result<(u64, Value), Failure> {
    let key: Arc<str> = String::from_utf8_lossy(&kv.key).into();
    let entry = Entry::decode(key, kv.mod_revision, &kv.value)
        .ok_or_else(|| Failure::internal("the stored object cannot be decoded"))?;
    Ok((entry.revision, entry.present(row)))
}

/// Adds what a Service claims or lets go: its addresses and node ports.
pub(crate) fn with_claims(mut txn: Txn, row: &Resource, old: Option<&Value>, new: Option<&Value>) -> Txn {
    if row.storage != "services" {
        return txn;
    }
    let claims = |o: Option<&Value>| o.map(allocate::claims).unwrap_or_default();
    let (before, after) = (claims(old), claims(new));
    for gone in before.difference(&after) {
        txn.ops.push(Op::Delete { key: gone.clone() });
    }
    let owner =
        new.map(|o| format!("{}/{}", api::meta::namespace(o), api::meta::name(o))).unwrap_or_default();
    for claim in after.difference(&before) {
        txn = txn.and_if(claim.clone(), Condition::Absent);
        txn.ops.push(Op::Put { key: claim.clone(), value: Bytes::from(owner.clone()) });
    }
    txn
}

/// What is stored of an object.
pub(crate) fn encode(object: &Value) -> Vec<u8> {
    let mut stored = object.clone();
    let meta = api::meta::metadata_mut(&mut stored);
    for key in ["resourceVersion", "managedFields", "selfLink"] {
        meta.remove(key);
    }
    serde_json::to_vec(&stored).expect("a JSON tree can be written")
}

fn with_revision(mut object: Value, revision: u64) -> Value {
    api::meta::set(&mut object, "resourceVersion", revision.to_string());
    object
}
