//! Who may use an image that is on the node already (KEP-2535): one that was pulled with a pod's secret is not given
//! to a pod that has no credentials for it.
//!
//! Guarantees: a pull is noted before it begins, so an image that came in just before a crash is not taken for
//! one that was always there.
//! Caveat: the records hold hashes of credentials; only root can read them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::warn;

use super::credentials::split;
use super::keyring::{Credential, SecretName};

/// `imagePullCredentialsVerificationPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Verification {
    /// Images on the node are for every pod.
    NeverVerify,
    /// Images that no kubelet pulled are for every pod.
    #[default]
    NeverVerifyPreloadedImages,
    /// Of these, only those on a list are.
    NeverVerifyAllowlistedImages,
    /// No image is, but by its record.
    AlwaysVerify,
}

/// Who pulled an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    image_ref: String,
    /// By registry and repository.
    credential_mapping: BTreeMap<String, Pulled>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pulled {
    /// By the node's own credentials, or without any.
    #[serde(default)]
    node_pods_accessible: bool,
    #[serde(default)]
    kubernetes_secrets: BTreeSet<Used>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Used {
    #[serde(flatten)]
    secret: SecretName,
    credential_hash: String,
}

/// The records of a kubelet.
pub struct Records {
    root: PathBuf,
    policy: Verification,
    allowed: Vec<String>,
    /// Pulls that run now, by image.
    running: Mutex<HashMap<String, usize>>,
}

impl Records {
    /// Below `root`; the directories are made when they are needed.
    pub fn new(root: PathBuf, policy: Verification, allowed: Vec<String>) -> Records {
        Records { root, policy, allowed, running: Mutex::default() }
    }

    /// Whether a pod with these secrets has to prove by a pull that it may use an image that is there.
    pub fn must_pull(&self, image: &str, id: &str, secrets: &[Credential]) -> bool {
        if self.policy == Verification::NeverVerify {
            return false;
        }
        let repository = repository(image);
        match self.read(id) {
            None if self.intent(image).exists() => true,
            None => match self.policy {
                Verification::NeverVerify | Verification::NeverVerifyPreloadedImages => false,
                Verification::NeverVerifyAllowlistedImages => !self.is_allowed(&repository),
                Verification::AlwaysVerify => true,
            },
            Some(record) => match record.credential_mapping.get(&repository) {
                None => true,
                Some(pulled) if pulled.node_pods_accessible => false,
                Some(pulled) => !secrets.iter().any(|c| {
                    let hash = c.hash();
                    pulled.kubernetes_secrets.iter().any(|used| used.credential_hash == hash)
                }),
            },
        }
    }

    /// Repositories, or the start of one and `/*`.
    fn is_allowed(&self, repository: &str) -> bool {
        self.allowed.iter().any(|pattern| match pattern.strip_suffix("/*") {
            Some(start) => repository.strip_prefix(start).is_some_and(|rest| rest.starts_with('/')),
            None => pattern == repository,
        })
    }

    /// Notes that a pull begins; it ends when the answer is dropped.
    pub fn begin(&self, image: &str) -> io::Result<Running<'_>> {
        *self.running.lock().entry(image.to_owned()).or_insert(0) += 1;
        let running = Running { records: self, image: image.to_owned() };
        write(&self.intent(image), image.as_bytes())?;
        Ok(running)
    }

    /// Notes who pulled an image. Without credentials, or with the node's, it is for every pod.
    pub fn pulled(&self, image: &str, id: &str, with: Option<&Credential>) -> io::Result<()> {
        let mut record = self.read(id).unwrap_or_default();
        record.image_ref = id.to_owned();
        let pulled = record.credential_mapping.entry(repository(image)).or_default();
        match with.and_then(|c| Some((c.secret.clone()?, c.hash()))) {
            None => pulled.node_pods_accessible = true,
            Some((secret, credential_hash)) => {
                // What the secret was before counts no longer.
                pulled.kubernetes_secrets.retain(|used| used.secret != secret);
                pulled.kubernetes_secrets.insert(Used { secret, credential_hash });
            }
        }
        write(&self.record(id), &serde_json::to_vec(&record)?)
    }

    /// The image is gone.
    pub fn forget(&self, id: &str) {
        remove(&self.record(id));
    }

    fn read(&self, id: &str) -> Option<Record> {
        let bytes = fs::read(self.record(id)).ok()?;
        let record = serde_json::from_slice(&bytes);
        if let Err(err) = &record {
            warn!(id, %err, "the record of who pulled an image is damaged: nobody is taken to have");
        }
        // A damaged record lets nobody in.
        Some(record.unwrap_or_default())
    }

    fn record(&self, id: &str) -> PathBuf {
        self.root.join("pulled").join(file_name(id))
    }

    fn intent(&self, image: &str) -> PathBuf {
        self.root.join("pulling").join(file_name(image))
    }
}

/// A pull that runs.
pub struct Running<'a> {
    records: &'a Records,
    image: String,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut running = self.records.running.lock();
        if let Some(count) = running.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.image);
                remove(&self.records.intent(&self.image));
            }
        }
    }
}

/// Registry and repository of an image's name.
fn repository(image: &str) -> String {
    let (registry, path) = split(image);
    format!("{registry}/{path}")
}

fn file_name(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    format!("sha256-{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Writes a file that is complete or absent after a crash.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let temporary = path.with_extension("new");
    let mut file =
        fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            warn!(path = %path.display(), %err, "remove a record of a pull");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use cri_api::v1::AuthConfig;

    use super::*;

    fn secret(name: &str, password: &str) -> Credential {
        let name = SecretName { uid: name.into(), namespace: "ns".into(), name: name.into() };
        let auth = AuthConfig { username: "u".into(), password: password.into(), ..Default::default() };
        Credential { auth, secret: Some(name) }
    }

    fn records(dir: &tempfile::TempDir, policy: Verification) -> Records {
        Records::new(dir.path().join("image_manager"), policy, vec!["r.io/free/*".into()])
    }

    #[test]
    fn private_images_are_for_those_with_credentials() {
        let dir = tempfile::tempdir().expect("a directory");
        let records = records(&dir, Verification::default());
        let (mine, other) = (secret("mine", "p"), secret("other", "q"));
        assert!(!records.must_pull("r.io/a", "id", &[]), "it was there before any kubelet");
        let running = records.begin("r.io/a:1").expect("noted");
        assert!(records.must_pull("r.io/a:1", "id", &[]), "a pull is under way");
        records.pulled("r.io/a:1", "id", Some(&mine)).expect("noted");
        drop(running);
        assert!(records.must_pull("r.io/a:1", "id", &[]));
        assert!(records.must_pull("r.io/a:2", "id", std::slice::from_ref(&other)));
        assert!(!records.must_pull("r.io/a:2", "id", &[other.clone(), mine.clone()]));
        assert!(!records.must_pull("r.io/a", "id", &[secret("copy", "p")]), "the same credentials elsewhere");
        assert!(records.must_pull("mirror.io/a", "id", std::slice::from_ref(&mine)), "another repository");
        // The secret's password changed.
        records.pulled("r.io/a:1", "id", Some(&secret("mine", "new"))).expect("noted");
        assert!(records.must_pull("r.io/a:1", "id", &[mine]));
        records.pulled("r.io/a:1", "id", None).expect("noted");
        assert!(!records.must_pull("r.io/a:1", "id", &[]), "the node may pull it");
        records.forget("id");
        assert!(!records.must_pull("r.io/a:1", "id", &[]));
    }

    #[test]
    fn policies() {
        let dir = tempfile::tempdir().expect("a directory");
        let must = |policy, image: &str| records(&dir, policy).must_pull(image, "id", &[]);
        assert!(!must(Verification::NeverVerifyPreloadedImages, "r.io/x"));
        assert!(!must(Verification::NeverVerifyAllowlistedImages, "r.io/free/x:1"));
        assert!(must(Verification::NeverVerifyAllowlistedImages, "r.io/freedom/x"));
        assert!(must(Verification::AlwaysVerify, "r.io/free/x"));
        let mine = secret("mine", "p");
        records(&dir, Verification::default()).pulled("r.io/x", "id", Some(&mine)).expect("noted");
        assert!(!must(Verification::NeverVerify, "r.io/x"));
        std::fs::write(records(&dir, Verification::default()).record("id"), "{").expect("written");
        assert!(must(Verification::default(), "r.io/x"), "a damaged record lets nobody in");
    }
}
