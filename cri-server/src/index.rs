//! What we know of the runtime's objects: typed records, and who holds which name.
//!
//! Guarantees: a name belongs to one object; two calls that make the same name come one after the other.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use runtime::Brief;
use tonic::Status;

use crate::meta::{ContainerMeta, SandboxMeta, container_name, sandbox_name};

/// One kind of object by id.
pub type ById<T> = HashMap<String, Arc<T>>;

/// A container, and whose it is.
struct Known {
    sandbox: String,
    meta: Arc<ContainerMeta>,
}

/// Everything known, in short critical sections.
#[derive(Default)]
pub struct Index {
    sandboxes: RwLock<ById<SandboxMeta>>,
    containers: RwLock<HashMap<String, Known>>,
    /// Name to id.
    names: Mutex<HashMap<String, String>>,
    making: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Index {
    /// Waits for whoever makes `name` now; hold the guard while making it.
    pub async fn reserve(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut making = self.making.lock();
            // Those that nobody holds are swept now and then.
            if making.len() > 256 {
                making.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            making.entry(name.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// Who has a name.
    pub fn holder(&self, name: &str) -> Option<String> {
        self.names.lock().get(name).cloned()
    }

    /// Adds or replaces a sandbox.
    pub fn put_sandbox(&self, id: &str, meta: SandboxMeta) -> Arc<SandboxMeta> {
        self.names.lock().insert(sandbox_name(&meta.config), id.to_owned());
        let meta = Arc::new(meta);
        self.sandboxes.write().insert(id.to_owned(), meta.clone());
        meta
    }

    /// Adds or replaces a container.
    pub fn put_container(&self, id: &str, sandbox: &str, meta: ContainerMeta) -> Arc<ContainerMeta> {
        self.names.lock().insert(container_name(sandbox, &meta.config), id.to_owned());
        let meta = Arc::new(meta);
        let known = Known { sandbox: sandbox.to_owned(), meta: meta.clone() };
        self.containers.write().insert(id.to_owned(), known);
        meta
    }

    /// Forgets a sandbox and its name.
    pub fn drop_sandbox(&self, id: &str) {
        self.sandboxes.write().remove(id);
        self.names.lock().retain(|_, holder| holder != id);
    }

    /// Forgets a container and its name.
    pub fn drop_container(&self, id: &str) {
        self.containers.write().remove(id);
        self.names.lock().retain(|_, holder| holder != id);
    }

    /// A sandbox by its whole id.
    pub fn sandbox(&self, id: &str) -> Option<Arc<SandboxMeta>> {
        self.sandboxes.read().get(id).cloned()
    }

    /// A container by its whole id.
    pub fn container(&self, id: &str) -> Option<Arc<ContainerMeta>> {
        self.containers.read().get(id).map(|known| known.meta.clone())
    }

    /// Ids of a sandbox's containers, also of one that the runtime has no longer.
    pub fn containers_in(&self, sandbox: &str) -> Vec<String> {
        let containers = self.containers.read();
        containers.iter().filter(|(_, known)| known.sandbox == sandbox).map(|(id, _)| id.clone()).collect()
    }

    /// Containers with what we know of them; those of which we know nothing are left out.
    pub fn with_metas(&self, briefs: Vec<Brief>) -> Vec<(Brief, Arc<ContainerMeta>)> {
        let containers = self.containers.read();
        let known = |brief: &Brief| containers.get(brief.id().as_str()).map(|known| known.meta.clone());
        briefs.into_iter().filter_map(|brief| known(&brief).map(|meta| (brief, meta))).collect()
    }

    /// The whole id that starts with `given`.
    pub fn sandbox_id(&self, given: &str) -> Result<String, Status> {
        resolve("sandbox", given, &self.sandboxes.read())
    }

    /// The whole id that starts with `given`.
    pub fn container_id(&self, given: &str) -> Result<String, Status> {
        resolve("container", given, &self.containers.read())
    }
}

/// Finds the one id that is or starts with `given`.
fn resolve<T>(kind: &str, given: &str, known: &HashMap<String, T>) -> Result<String, Status> {
    if given.is_empty() {
        return Err(Status::invalid_argument(format!("a {kind} id is needed; none was given")));
    }
    if known.contains_key(given) {
        return Ok(given.to_owned());
    }
    let mut found = known.keys().filter(|id| id.starts_with(given));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id.clone()),
        (None, _) => Err(Status::not_found(format!("no {kind} {given:?}"))),
        (Some(_), Some(_)) => {
            Err(Status::invalid_argument(format!("several {kind} ids start with {given:?}: give more of it")))
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn ids_may_be_shortened() {
        let index = Index::default();
        for id in ["abc1", "abd2", "abd"] {
            index.put_sandbox(id, SandboxMeta::default());
        }
        assert_eq!(index.sandbox_id("abc").expect("one"), "abc1");
        assert_eq!(index.sandbox_id("abd").expect("exact"), "abd");
        assert_eq!(index.sandbox_id("ab").expect_err("several").code(), Code::InvalidArgument);
        assert_eq!(index.sandbox_id("x").expect_err("none").code(), Code::NotFound);
        assert_eq!(index.sandbox_id("").expect_err("empty").code(), Code::InvalidArgument);
        index.drop_sandbox("abc1");
        assert!(index.sandbox("abc1").is_none());
    }
}
