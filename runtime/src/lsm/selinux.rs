//! SELinux: contexts of a pod's processes and files.
//!
//! The policy says what containers are (`contexts/lxc_contexts`); each pod has a level of its own beneath, two
//! categories that no other pod of this node has, so that pods can't touch each other's files. A policy that says
//! nothing of containers leaves them in the daemon's own context.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use crate::error::RuntimeError;
use crate::spec::SelinuxOptions;

const FILES: &str = "/sys/fs/selinux";
const POLICIES: &str = "/etc/selinux";
/// Categories of a level: c0 to c1023.
const CATEGORIES: u32 = 1024;

/// SELinux of this node.
#[derive(Debug)]
pub struct Selinux {
    /// Whether the policy is enforced, or only told of.
    pub enforcing: bool,
    /// What the policy says of containers.
    base: Option<Base>,
}

/// The contexts that a policy has for containers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Base {
    process: Context,
    file: Context,
    /// Of what containers may read and run and not write: images' layers.
    shared: Option<Context>,
}

/// A context: who, as what, of which type, at which level.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Context {
    user: String,
    role: String,
    kind: String,
    /// Policies without levels have none.
    level: Option<String>,
}

impl Selinux {
    /// Looks whether the kernel runs it; `None` when it doesn't.
    pub fn find() -> Option<Selinux> {
        let enforce = std::fs::read_to_string(Path::new(FILES).join("enforce")).ok()?;
        let config = std::fs::read_to_string(Path::new(POLICIES).join("config")).unwrap_or_default();
        let contexts = Path::new(POLICIES).join(policy(&config)).join("contexts/lxc_contexts");
        let base = std::fs::read_to_string(contexts).ok().and_then(|text| Base::parse(&text));
        Some(Selinux { enforcing: enforce.trim() == "1", base })
    }

    /// A sentence where the policy says nothing of containers.
    pub fn statement(&self) -> Option<String> {
        self.base.is_none().then(|| {
            "SELinux is on, but its policy says nothing of containers (contexts/lxc_contexts), so they run in the \
             daemon's own context: install a policy that does, such as container-selinux"
                .to_owned()
        })
    }

    /// The context that an image's layer must get, given the one that it has; `None` when that is right. What a program
    /// of a container maps into its memory is looked at in the layer, whatever the container's root says.
    pub fn of_layer(&self, has: Option<&str>) -> Option<String> {
        let wanted = self.base.as_ref()?.shared.as_ref()?;
        // Who made it, and at which level, is no matter.
        let right = has.and_then(Context::parse).is_some_and(|has| has.kind == wanted.kind);
        (!right).then(|| wanted.to_string())
    }

    /// A level for a new pod: the one that it asks for, or one that none of the others has; `None` where the policy has
    /// none.
    pub fn level(&self, asked: Option<&SelinuxOptions>, taken: &HashSet<&str>) -> Option<String> {
        let base = self.base.as_ref()?.process.level.as_deref()?;
        if let Some(asked) = asked.filter(|asked| !asked.level.is_empty()) {
            return Some(asked.level.clone());
        }
        free_level(base, taken, uuid::Uuid::new_v4().as_fields().0)
    }

    /// The contexts of a container's processes and files. `level` is the pod's.
    pub fn labels(
        &self,
        asked: Option<&SelinuxOptions>,
        level: Option<&str>,
    ) -> Result<Option<(String, String)>, RuntimeError> {
        let Some(base) = &self.base else {
            return match asked {
                Some(asked) if !asked.is_empty() => Err(RuntimeError::invalid(format!(
                    "the SELinux label {asked:?} cannot be applied: {}",
                    self.statement().unwrap_or_default()
                ))),
                _ => Ok(None),
            };
        };
        let (process, file) = base.contexts(asked, level);
        for context in [&process, &file] {
            // The kernel itself tells whether its policy has such a context.
            if let Err(error) = std::fs::write(Path::new(FILES).join("context"), context) {
                return Err(RuntimeError::invalid(format!(
                    "the SELinux context {context:?} is not in this node's policy ({error}): change seLinuxOptions"
                )));
            }
        }
        Ok(Some((process, file)))
    }
}

/// The policy's name in `/etc/selinux/config`.
fn policy(config: &str) -> &str {
    let lines = config.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mut named = lines.filter_map(|line| line.strip_prefix("SELINUXTYPE="));
    named.next().map(str::trim).filter(|name| !name.is_empty() && !name.contains('/')).unwrap_or("targeted")
}

impl Base {
    /// Reads lines of the form `process = "system_u:system_r:container_t:s0"`.
    fn parse(text: &str) -> Option<Base> {
        let value = |key: &str| {
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            let mut found = pairs.filter(|(name, _)| name.trim() == key);
            Context::parse(found.next()?.1.trim().trim_matches('"'))
        };
        Some(Base { process: value("process")?, file: value("file")?, shared: value("ro_file") })
    }

    /// The contexts of processes and files; files have the processes' level.
    fn contexts(&self, asked: Option<&SelinuxOptions>, level: Option<&str>) -> (String, String) {
        let none = SelinuxOptions::default();
        let asked = asked.unwrap_or(&none);
        let or = |asked: &str, base: &str| if asked.is_empty() { base.to_owned() } else { asked.to_owned() };
        let own = Some(asked.level.as_str()).filter(|level| !level.is_empty()).or(level).map(str::to_owned);
        let process = Context {
            user: or(&asked.user, &self.process.user),
            role: or(&asked.role, &self.process.role),
            kind: or(&asked.kind, &self.process.kind),
            level: own.clone().or_else(|| self.process.level.clone()),
        };
        let file = Context { level: own.or_else(|| self.file.level.clone()), ..self.file.clone() };
        (process.to_string(), file.to_string())
    }
}

impl Context {
    fn parse(text: &str) -> Option<Context> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        let whole = [&user, &role, &kind].iter().all(|part| !part.is_empty());
        whole.then(|| Context { user, role, kind, level: parts.next().filter(|level| !level.is_empty()) })
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        match &self.level {
            Some(level) => write!(f, ":{level}"),
            None => Ok(()),
        }
    }
}

/// A level of two categories that nobody has, looked for from `seed` on; `None` when all are taken.
fn free_level(base: &str, taken: &HashSet<&str>, seed: u32) -> Option<String> {
    let sensitivity = base.split([':', '-']).next().unwrap_or("s0");
    let pairs = CATEGORIES * (CATEGORIES - 1) / 2;
    let levels = (0..pairs).map(|step| {
        let (low, high) = pair((seed % pairs + step) % pairs);
        format!("{sensitivity}:c{low},c{high}")
    });
    levels.into_iter().find(|level| !taken.contains(level.as_str()))
}

/// The pair of categories with this number, the smaller first.
fn pair(number: u32) -> (u32, u32) {
    // Row `high` has `high` pairs: (0, high) to (high - 1, high).
    let mut high = ((f64::from(number) * 2.0).sqrt()) as u32;
    while high * (high + 1) / 2 <= number {
        high += 1;
    }
    while high * (high - 1) / 2 > number {
        high -= 1;
    }
    (number - high * (high - 1) / 2, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXTS: &str = "process = \"system_u:system_r:container_t:s0\"\ncontent = \"system_u:object_r:virt_var_lib_t:s0\"\n\
                            file = \"system_u:object_r:container_file_t:s0\"\nro_file = \"system_u:object_r:container_ro_file_t:s0\"\n";

    #[test]
    fn the_policy_is_named_in_its_configuration() {
        assert_eq!(policy("# SELINUXTYPE=x\nSELINUX=enforcing\nSELINUXTYPE=default\n"), "default");
        assert_eq!(policy(""), "targeted");
        assert_eq!(policy("SELINUXTYPE=../x"), "targeted");
    }

    #[test]
    fn contexts_are_put_together() {
        let base = Base::parse(CONTEXTS).unwrap();
        let (process, file) = base.contexts(None, Some("s0:c1,c2"));
        assert_eq!(process, "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(file, "system_u:object_r:container_file_t:s0:c1,c2");
        let asked = SelinuxOptions { kind: "spc_t".into(), level: "s0:c7".into(), ..Default::default() };
        let (process, file) = base.contexts(Some(&asked), Some("s0:c1,c2"));
        assert_eq!(process, "system_u:system_r:spc_t:s0:c7");
        assert_eq!(file, "system_u:object_r:container_file_t:s0:c7");
        assert_eq!(Base::parse("process = \"a:b\"\n"), None);
        assert_eq!(Base::parse(""), None);
        let plain = Base::parse("process = \"a:b:c\"\nfile = \"d:e:f\"").unwrap();
        assert_eq!(plain.contexts(None, None), ("a:b:c".to_owned(), "d:e:f".to_owned()));
    }

    #[test]
    fn layers_get_the_shared_context_once() {
        let selinux = Selinux { enforcing: true, base: Base::parse(CONTEXTS) };
        let wanted = Some("system_u:object_r:container_ro_file_t:s0".to_owned());
        assert_eq!(selinux.of_layer(None), wanted);
        assert_eq!(selinux.of_layer(Some("system_u:object_r:var_lib_t:s0")), wanted);
        assert_eq!(selinux.of_layer(Some("unconfined_u:object_r:container_ro_file_t:s0")), None);
        let silent = Selinux { enforcing: true, base: Base::parse("process = \"a:b:c\"\nfile = \"d:e:f\"") };
        assert_eq!(silent.of_layer(None), None);
    }

    #[test]
    fn every_pair_has_one_number() {
        assert_eq!([pair(0), pair(1), pair(2), pair(3)], [(0, 1), (0, 2), (1, 2), (0, 3)]);
        let pairs = CATEGORIES * (CATEGORIES - 1) / 2;
        let all: HashSet<(u32, u32)> = (0..pairs).map(pair).collect();
        assert_eq!(all.len(), pairs as usize);
        assert!(all.iter().all(|(low, high)| low < high && *high < CATEGORIES));
    }

    #[test]
    fn levels_are_unique() {
        let taken: HashSet<&str> = ["s0:c0,c1", "s0:c0,c2"].into();
        let selinux = Selinux { enforcing: true, base: Base::parse(CONTEXTS) };
        let asked = SelinuxOptions { level: "s0:c9".into(), ..Default::default() };
        assert_eq!(selinux.level(Some(&asked), &taken).as_deref(), Some("s0:c9"));
        assert_eq!(free_level("s0", &taken, 0).as_deref(), Some("s0:c1,c2"));
        assert_eq!(free_level("s0-s0:c0.c1023", &HashSet::new(), 0).as_deref(), Some("s0:c0,c1"));
        assert_eq!(
            free_level("s0", &HashSet::new(), u32::MAX).map(|level| level.starts_with("s0:c")),
            Some(true)
        );
    }

    #[test]
    fn a_policy_without_containers_labels_nothing() {
        let selinux = Selinux { enforcing: true, base: None };
        assert_eq!(selinux.labels(None, None).unwrap(), None);
        assert_eq!(selinux.level(None, &HashSet::new()), None);
        let asked = SelinuxOptions { level: "s0".into(), ..Default::default() };
        let refused = selinux.labels(Some(&asked), None).unwrap_err().to_string();
        assert!(refused.contains("says nothing of containers"), "{refused}");
    }
}
