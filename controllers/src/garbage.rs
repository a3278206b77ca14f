//! Deletes what nobody owns any more, and finishes foreground and orphaning deletions.
//!
//! Guarantees: an object is deleted only if each of its owners is known to be gone: not in our copy, and
//! not at the apiserver either when asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use client::describe;
use futures::future::select_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;
use kube::api::ApiResource;
use serde_json::json;
use tracing::warn;

use crate::metadata::{Item, Metadata};
use crate::write::{Write, act, dynamic};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// A safety net: everything is looked at again after this long.
const RESYNC: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(500);

/// Collects garbage for ever.
pub async fn run(client: &Client, metadata: Metadata) {
    metadata.synced().await;
    let mut changed = metadata.changed();
    // Owners that were asked for and are gone. Uids are never used twice.
    let mut gone: BTreeSet<String> = BTreeSet::new();
    loop {
        for version in &mut changed {
            version.mark_unchanged();
        }
        let items = metadata.items();
        let mut failed = false;
        for doubtful in unknown_owners(&items, &gone) {
            match is_gone(client, &items, &doubtful).await {
                Ok(true) => {
                    gone.insert(doubtful.owner.uid);
                }
                Ok(false) => {}
                Err(err) => {
                    warn!(owner = %doubtful.owner.name, err = %describe(&err), "ask for an owner");
                    failed = true;
                }
            }
        }
        for write in plan(&items, &gone) {
            match act(client, &write).await {
                Ok(_) => {}
                // Changed meanwhile: planned again from what the watch shows.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(err) => {
                    warn!(err = %describe(&err), "collect garbage");
                    failed = true;
                }
            }
        }
        let used: BTreeSet<_> = items.iter().flat_map(owners).map(|owner| owner.uid.clone()).collect();
        gone.retain(|uid| used.contains(uid));
        let any = select_all(changed.iter_mut().map(|version| Box::pin(version.changed())));
        tokio::select! {
            // Cancel-safe: an unobserved change stays marked as changed.
            _ = any, if !failed => (),
            () = tokio::time::sleep(if failed { RETRY } else { RESYNC }) => (),
        }
    }
}

/// An owner that our copy doesn't have, and the namespace of the object that names it.
#[derive(Debug, Clone)]
struct Doubtful {
    namespace: String,
    owner: OwnerReference,
}

fn owners(item: &Item) -> impl Iterator<Item = &OwnerReference> {
    item.meta.owner_references.iter().flatten()
}

fn unknown_owners(items: &[Item], gone: &BTreeSet<String>) -> Vec<Doubtful> {
    let there: BTreeSet<_> = items.iter().map(Item::uid).collect();
    let mut found = BTreeMap::new();
    for item in items {
        for owner in owners(item).filter(|o| !there.contains(o.uid.as_str()) && !gone.contains(&o.uid)) {
            let doubtful = Doubtful { namespace: item.namespace().to_owned(), owner: owner.clone() };
            found.insert(owner.uid.clone(), doubtful);
        }
    }
    found.into_values().collect()
}

/// Asks the apiserver whether the owner is gone: no such object, or another of that name.
async fn is_gone(client: &Client, items: &[Item], doubtful: &Doubtful) -> kube::Result<bool> {
    let owner = &doubtful.owner;
    // A kind of which we know no object: its plural can only be asked for.
    let known =
        items.iter().find(|item| item.kind.kind == owner.kind && item.kind.api_version == owner.api_version);
    let (kind, namespaced) = match known {
        Some(item) => (item.kind.clone(), item.meta.namespace.is_some()),
        None => match kind_of(client, owner).await? {
            Some(found) => found,
            // A kind that isn't served (any more) has no objects.
            None => return Ok(true),
        },
    };
    let namespace = if namespaced { doubtful.namespace.as_str() } else { "" };
    let found = dynamic(client, &kind, namespace).get_metadata_opt(&owner.name).await?;
    Ok(found.is_none_or(|found| found.metadata.uid.as_deref() != Some(owner.uid.as_str())))
}

async fn kind_of(client: &Client, owner: &OwnerReference) -> kube::Result<Option<(ApiResource, bool)>> {
    let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
    let gvk = kube::core::GroupVersionKind::gvk(group, version, &owner.kind);
    match kube::discovery::pinned_kind(client, &gvk).await {
        Ok((kind, can)) => Ok(Some((kind, can.scope == kube::discovery::Scope::Namespaced))),
        Err(kube::Error::Discovery(_)) => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(err) => Err(err),
    }
}

/// Decides one round from the objects and the owners that are known to be gone.
fn plan(items: &[Item], gone: &BTreeSet<String>) -> Vec<Write> {
    let mut dependents: HashMap<&str, Vec<&Item>> = HashMap::new();
    for item in items {
        for owner in owners(item) {
            dependents.entry(owner.uid.as_str()).or_default().push(item);
        }
    }
    let by_uid: HashMap<_, _> = items.iter().map(|item| (item.uid(), item)).collect();
    let waits =
        |owner: &OwnerReference| by_uid.get(owner.uid.as_str()).is_some_and(|o| is_deleting(o, FOREGROUND));
    let mut writes = Vec::new();
    for item in items {
        let named: Vec<_> = owners(item).collect();
        let lost: Vec<_> = named.iter().filter(|owner| gone.contains(&owner.uid)).collect();
        let all_end = named.iter().all(|owner| gone.contains(&owner.uid) || waits(owner));
        if !named.is_empty() && all_end {
            if item.meta.deletion_timestamp.is_none() {
                writes.push(delete(item));
            }
        } else if !lost.is_empty() {
            // Somebody still owns it: only the lost names go.
            writes.push(without_owners(item, |owner| gone.contains(&owner.uid)));
        }
        if is_deleting(item, ORPHAN) {
            let left = dependents.get(item.uid()).map(Vec::as_slice).unwrap_or_default();
            writes.extend(left.iter().map(|child| without_owners(child, |owner| owner.uid == item.uid())));
            writes.push(without_finalizer(item, ORPHAN));
        }
        if is_deleting(item, FOREGROUND) {
            let left = dependents.get(item.uid()).map(Vec::as_slice).unwrap_or_default();
            let blocks = |child: &&Item| {
                owners(child).any(|o| o.uid == item.uid() && o.block_owner_deletion == Some(true))
            };
            if !left.iter().any(blocks) {
                writes.push(without_finalizer(item, FOREGROUND));
            }
        }
    }
    writes
}

fn is_deleting(item: &Item, finalizer: &str) -> bool {
    let finalizers = item.meta.finalizers.as_deref().unwrap_or_default();
    item.meta.deletion_timestamp.is_some() && finalizers.iter().any(|f| f == finalizer)
}

fn delete(item: &Item) -> Write {
    Write::Delete {
        kind: item.kind.clone(),
        namespace: item.namespace().to_owned(),
        name: item.name().to_owned(),
        uid: item.uid().to_owned(),
    }
}

fn without_owners(item: &Item, lost: impl Fn(&OwnerReference) -> bool) -> Write {
    let kept: Vec<_> = owners(item).filter(|owner| !lost(owner)).collect();
    merge(item, json!({ "ownerReferences": kept }))
}

fn without_finalizer(item: &Item, finalizer: &str) -> Write {
    let kept: Vec<_> = item.meta.finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
    merge(item, json!({ "finalizers": kept }))
}

/// A change of metadata that fails if the object changed meanwhile.
fn merge(item: &Item, mut metadata: serde_json::Value) -> Write {
    metadata["uid"] = json!(item.meta.uid);
    metadata["resourceVersion"] = json!(item.meta.resource_version);
    Write::Merge {
        kind: item.kind.clone(),
        namespace: item.namespace().to_owned(),
        name: item.name().to_owned(),
        patch: json!({ "metadata": metadata }),
        subresource: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name <- owner owner` with `!` for one that blocks; `name:finalizer` for one that is deleting.
    fn item(text: &str) -> Item {
        let (name, named) = text.split_once(" <- ").unwrap_or((text, ""));
        let (name, finalizer) = name.split_once(':').unwrap_or((name, ""));
        let owner = |word: &str| {
            json!({ "apiVersion": "v1", "kind": "K", "name": word.trim_start_matches('!'),
                "uid": word.trim_start_matches('!'), "blockOwnerDeletion": word.starts_with('!') })
        };
        let mut meta = json!({ "name": name, "uid": name, "namespace": "d",
            "ownerReferences": named.split_whitespace().map(owner).collect::<Vec<_>>() });
        if !finalizer.is_empty() {
            meta["finalizers"] = json!([finalizer]);
            meta["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let kind = ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("", "v1", "K"));
        Item { kind, meta: serde_json::from_value(meta).unwrap() }
    }

    fn check(items: &[&str], gone: &[&str]) -> String {
        let items: Vec<_> = items.iter().map(|text| item(text)).collect();
        let gone = gone.iter().map(|uid| (*uid).to_owned()).collect();
        let words = plan(&items, &gone).into_iter().map(|write| match write {
            Write::Delete { name, .. } => format!("delete {name}"),
            Write::Merge { name, patch, .. } if patch["metadata"]["finalizers"].is_array() => {
                format!("finish {name}")
            }
            Write::Merge { name, patch, .. } => {
                format!(
                    "{name} keeps {}",
                    patch["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len)
                )
            }
            other => format!("{other:?}"),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn only_what_has_no_owner_left_goes() {
        assert_eq!(check(&["pod <- set"], &["set"]), "delete pod");
        assert_eq!(check(&["pod <- set"], &[]), "");
        assert_eq!(check(&["a", "pod <- a set"], &["set"]), "pod keeps 1");
    }

    #[test]
    fn foreground_deletion_waits_for_what_blocks_it() {
        assert_eq!(check(&["set:foregroundDeletion", "pod <- !set"], &[]), "delete pod");
        assert_eq!(check(&["set:foregroundDeletion", "pod:x <- !set"], &[]), "");
        assert_eq!(check(&["set:foregroundDeletion"], &[]), "finish set");
    }

    #[test]
    fn orphans_lose_only_the_name_of_their_owner() {
        assert_eq!(check(&["set:orphan", "pod <- set"], &[]), "pod keeps 0, finish set");
    }

    #[test]
    fn an_owner_that_our_copy_lacks_is_asked_for_once() {
        let items = [item("a <- x"), item("b <- x"), item("c <- a")];
        let asked = unknown_owners(&items, &BTreeSet::new());
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].owner.uid, "x");
        assert!(unknown_owners(&items, &BTreeSet::from(["x".to_owned()])).is_empty());
    }
}
