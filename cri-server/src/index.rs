//! What we know of the runtime's objects: typed records, and who holds which name.
//!
//! Guarantees: a name belongs to one object; two calls that make the same name come one after the other.

use std::collections::HashMap;
use std::sync::Arc;

use cri_api::Row;
use cri_api::v1::{Container, PodSandbox};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use runtime::{Brief, SandboxBrief};
use tonic::Status;

use crate::filter::Traits;
use crate::meta::{ContainerMeta, SandboxMeta, container_name, sandbox_name};
use crate::view;

/// What we know of an object, and its row in lists.
struct Known<M, R> {
    /// The sandbox of a container; empty for a sandbox.
    sandbox: String,
    meta: Arc<M>,
    /// As a list showed it last. Besides `meta` it depends on its state only.
    row: Mutex<Option<Row<R>>>,
}

impl<M, R> Known<M, R> {
    fn new(sandbox: &str, meta: Arc<M>) -> Known<M, R> {
        Known { sandbox: sandbox.to_owned(), meta, row: Mutex::default() }
    }

    /// The row of the last list if it shows the state of now, else a new one.
    fn row(&self, shows_now: impl Fn(&R) -> bool, make: impl FnOnce(&M) -> R) -> Row<R> {
        let mut kept = self.row.lock();
        match kept.as_ref().filter(|row| shows_now(row)) {
            Some(row) => row.clone(),
            None => kept.insert(make(&self.meta).into()).clone(),
        }
    }
}

/// One kind of object by id.
type ById<M, R> = HashMap<String, Known<M, R>>;

/// The containers, for as long as a list is made of them: meanwhile none can be added or dropped.
pub struct Containers<'a>(RwLockReadGuard<'a, ById<ContainerMeta, Container>>);

impl Containers<'_> {
    /// A container's row, if it is known and wanted.
    pub fn row(&self, brief: Brief<'_>, wanted: impl Fn(Traits<'_>) -> bool) -> Option<Row<Container>> {
        let known = self.0.get(brief.id().as_str())?;
        let traits = view::traits(brief, &known.meta);
        let make = |meta: &ContainerMeta| view::container_row(brief, meta);
        wanted(traits).then(|| known.row(|row| row.state == traits.state, make))
    }
}

/// The sandboxes, for as long as a list is made of them.
pub struct Sandboxes<'a>(RwLockReadGuard<'a, ById<SandboxMeta, PodSandbox>>);

impl Sandboxes<'_> {
    /// A sandbox's row, if it is known.
    pub fn row(&self, brief: SandboxBrief<'_>) -> Option<Row<PodSandbox>> {
        let known = self.0.get(brief.id.as_str())?;
        let state = view::sandbox_state(brief.state, &known.meta) as i32;
        Some(known.row(|row| row.state == state, |meta| view::sandbox_row(brief, meta)))
    }
}

/// Everything known, in short critical sections.
#[derive(Default)]
pub struct Index {
    sandboxes: RwLock<ById<SandboxMeta, PodSandbox>>,
    containers: RwLock<ById<ContainerMeta, Container>>,
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
        self.sandboxes.write().insert(id.to_owned(), Known::new("", meta.clone()));
        meta
    }

    /// Adds or replaces a container.
    pub fn put_container(&self, id: &str, sandbox: &str, meta: ContainerMeta) -> Arc<ContainerMeta> {
        self.names.lock().insert(container_name(sandbox, &meta.config), id.to_owned());
        let meta = Arc::new(meta);
        self.containers.write().insert(id.to_owned(), Known::new(sandbox, meta.clone()));
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
        self.sandboxes.read().get(id).map(|known| known.meta.clone())
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

    /// All containers, to make a list of.
    pub fn containers(&self) -> Containers<'_> {
        Containers(self.containers.read())
    }

    /// All sandboxes, to make a list of.
    pub fn sandboxes(&self) -> Sandboxes<'_> {
        Sandboxes(self.sandboxes.read())
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
    use jiff::Timestamp;
    use runtime::SandboxState;
    use tonic::Code;

    use super::*;

    #[test]
    fn a_row_is_made_once_for_each_state() {
        let index = Index::default();
        let id = "abc".parse().expect("an id");
        let row = |state| {
            let brief = SandboxBrief { id: &id, state, created_at: Timestamp::UNIX_EPOCH };
            index.sandboxes().row(brief)
        };
        assert!(row(SandboxState::Ready).is_none());
        let put = |handler: &str| {
            let meta = SandboxMeta { connected: true, handler: handler.to_owned(), ..SandboxMeta::default() };
            index.put_sandbox("abc", meta);
        };
        put("a");
        let first = row(SandboxState::Ready).expect("known");
        let at = |row: &Row<PodSandbox>| std::ptr::from_ref(&**row);
        assert_eq!(at(&row(SandboxState::Ready).expect("known")), at(&first));
        let stopped = row(SandboxState::NotReady).expect("known");
        assert_ne!((first.state, at(&first)), (stopped.state, at(&stopped)));
        // What is put anew is shown anew.
        put("b");
        assert_eq!(row(SandboxState::Ready).expect("known").runtime_handler, "b");
    }

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
