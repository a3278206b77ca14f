//! What the host looked like before, and whether it still does.
//!
//! Guarantees: a change of what attacks aim at is found; the tests at the end show that.
//! Assumes: nobody else changes these files meanwhile; mounts of other programs elsewhere don't matter.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::ensure;

use crate::archive::digest;

/// Settings and files that the exploits of these CVEs wrote to.
const FILES: [&str; 9] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/shm_rmid_forced",
    "/proc/sys/kernel/sysrq",
    "/sys/kernel/uevent_helper",
    "/etc/passwd",
    "/etc/shadow",
    "/etc/hosts",
    "/etc/ld.so.preload",
];

/// Directories whose names are compared.
const DIRECTORIES: [&str; 4] = ["/", "/dev", "/etc", "/root"];

/// The host at one moment, with a canary directory of its own.
#[derive(Debug)]
pub struct Host {
    canary: PathBuf,
    binary: PathBuf,
    before: BTreeMap<String, String>,
}

impl Host {
    /// Makes the canary in `dir`, and looks at everything.
    pub fn watch(dir: &Path, binary: &Path) -> anyhow::Result<Host> {
        let canary = dir.join("canary");
        std::fs::create_dir_all(canary.join("empty"))?;
        std::fs::write(canary.join("secret"), "the canary lives\n")?;
        std::fs::write(canary.join("victim"), "not to be written\n")?;
        std::os::unix::fs::symlink("secret", canary.join("link"))?;
        let mut host = Host { canary, binary: binary.to_owned(), before: BTreeMap::new() };
        host.before = host.look()?;
        Ok(host)
    }

    /// The canary's directory.
    pub fn canary(&self) -> &Path {
        &self.canary
    }

    /// Fails if anything has changed.
    pub fn check(&self) -> anyhow::Result<()> {
        let after = self.look()?;
        let mut changed = Vec::new();
        let names: std::collections::BTreeSet<_> = self.before.keys().chain(after.keys()).collect();
        for name in names {
            let (before, after) = (self.before.get(name), after.get(name));
            if before != after {
                let word = |found: Option<&String>| found.cloned().unwrap_or_else(|| "nothing".to_owned());
                changed.push(format!("{name}: {} became {}", word(before), word(after)));
            }
        }
        ensure!(changed.is_empty(), "the host was changed:\n{}", changed.join("\n"));
        Ok(())
    }

    fn look(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        for file in FILES {
            let content = std::fs::read(file).map(|bytes| digest(&bytes));
            found.insert(file.to_owned(), content.unwrap_or_else(|error| error.kind().to_string()));
        }
        // Whoever writes to it changes its ctime; to hash it each time would take the longest of all.
        found.insert(self.binary.to_string_lossy().into_owned(), state(&self.binary.symlink_metadata()?));
        for dir in DIRECTORIES {
            for entry in std::fs::read_dir(dir)?.flatten() {
                let name = entry.path().to_string_lossy().into_owned();
                // Programs beside us make these.
                if !["/dev/loop", "/dev/dm-", "/dev/vhost", "/.", "/etc/."]
                    .iter()
                    .any(|own| name.starts_with(own))
                {
                    found.insert(name, "there".to_owned());
                }
            }
        }
        tree(&self.canary, &mut found)?;
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let canary = self.canary.to_string_lossy();
        for line in table.lines() {
            let mut fields = line.split(' ').skip(3);
            let (root, point) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
            let aimed = ["/proc", "/sys", "/dev", "/etc", "/boot"].iter().any(|dir| {
                point.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
            if (aimed && !point.starts_with("/sys/fs/cgroup"))
                || root.contains(&*canary)
                || point.contains(&*canary)
            {
                found.insert(format!("mount {point}"), line.split(' ').skip(2).collect::<Vec<_>>().join(" "));
            }
        }
        Ok(found)
    }
}

/// Everything in a directory: kind, permissions, owner, size, when it was changed, content.
fn tree(dir: &Path, found: &mut BTreeMap<String, String>) -> anyhow::Result<()> {
    let stat = dir.symlink_metadata()?;
    let content = if stat.is_file() { digest(&std::fs::read(dir)?) } else { String::new() };
    found.insert(dir.to_string_lossy().into_owned(), state(&stat) + &content);
    if stat.is_dir() {
        for entry in std::fs::read_dir(dir)? {
            tree(&entry?.path(), found)?;
        }
    }
    Ok(())
}

/// All of a file but its content.
fn state(stat: &std::fs::Metadata) -> String {
    format!(
        "{}: {:o} {}:{} {} bytes {} links changed at {}.{} ",
        stat.ino(),
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.size(),
        stat.nlink(),
        stat.ctime(),
        stat.ctime_nsec()
    )
}

#[test]
fn a_touched_canary_is_seen() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let binary = dir.path().join("binary");
    std::fs::write(&binary, "program")?;
    type Touch = fn(&Path) -> std::io::Result<()>;
    let touches: [(&str, Touch); 6] = [
        ("new", |canary| std::fs::write(canary.join("new"), "")),
        ("deep", |canary| std::fs::create_dir(canary.join("empty/deep"))),
        ("secret", |canary| std::fs::write(canary.join("secret"), "the canary dies.\n")),
        ("victim", |canary| std::fs::hard_link(canary.join("victim"), canary.join("../stolen"))),
        ("secret", |canary| {
            std::fs::set_permissions(
                canary.join("link"),
                std::os::unix::fs::PermissionsExt::from_mode(0o4755),
            )
        }),
        ("binary", |canary| std::fs::write(canary.join("../binary"), "another")),
    ];
    for (name, touch) in touches {
        let host = Host::watch(dir.path(), &binary)?;
        host.check()?;
        touch(host.canary())?;
        let said = host.check().expect_err("a change is seen").to_string();
        ensure!(said.contains(name), "{said}");
        std::fs::remove_dir_all(host.canary())?;
    }
    Ok(())
}
