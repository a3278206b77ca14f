//! AppArmor: the default profile, and which profiles are loaded.
//!
//! The kernel takes profiles in a binary form that only `apparmor_parser` makes; without it, whatever others loaded can
//! be used by name, and the default profile can't.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::error::RuntimeError;
use crate::spec::{AppArmorProfile, ContainerSpec};

/// Name of the default profile.
pub const DEFAULT: &str = "orlop-default";

const TEXT: &str = include_str!("orlop-default.profile");
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PARSER: &str = "apparmor_parser";
/// Where it is; a service's search path need not have these.
const PARSERS: [&str; 3] = [PARSER, "/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];

/// AppArmor of this node.
#[derive(Debug)]
pub struct AppArmor {
    enabled: bool,
    /// Where the text of the default profile is put for the parser.
    file: PathBuf,
    /// Whether the default profile is loaded, or why not; set once that was tried.
    default: OnceLock<Result<(), String>>,
}

impl AppArmor {
    /// Looks whether the kernel has it. `run` is a directory for the text of the default profile.
    pub fn find(run: &Path) -> AppArmor {
        let enabled = std::fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "Y");
        AppArmor { enabled, file: run.join("apparmor-default"), default: OnceLock::new() }
    }

    /// Whether the kernel has it.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Loads the default profile, unless that was tried already. Blocks while the parser works, also while another
    /// thread waits for it. Tells why not.
    pub fn load_default(&self) -> Result<(), String> {
        self.default.get_or_init(|| if self.enabled { self.load() } else { Ok(()) }).clone()
    }

    /// The outcome of loading, if that has ended; an error is a sentence.
    pub fn outcome(&self) -> Option<&Result<(), String>> {
        self.default.get().filter(|_| self.enabled)
    }

    fn load(&self) -> Result<(), String> {
        let tell = |what: String| format!("the AppArmor profile {DEFAULT} is not in force: {what}");
        let loaded = std::fs::read_to_string(LOADED).map_err(|error| {
            tell(format!("{LOADED} can't be read ({error}): mount securityfs at /sys/kernel/security"))
        })?;
        match self.parse() {
            // Somebody loaded it, or a daemon before this one.
            Err(why) if is_loaded(&loaded, DEFAULT) => {
                tracing::warn!("the AppArmor profile {DEFAULT} stays as it was loaded: {why}");
                Ok(())
            }
            outcome => outcome.map_err(tell),
        }
    }

    /// Lets the parser load the profile; its text may have changed since another version of this program did.
    fn parse(&self) -> Result<(), String> {
        std::fs::write(&self.file, TEXT)
            .map_err(|error| format!("write {}: {error}", self.file.display()))?;
        for parser in PARSERS {
            let ran = Command::new(parser)
                .args(["--replace", "--skip-cache", "--quiet"])
                .arg(&self.file)
                .stdin(Stdio::null())
                .output();
            match ran {
                Ok(ran) if ran.status.success() => return Ok(()),
                Ok(ran) => {
                    let said = String::from_utf8_lossy(&ran.stderr);
                    return Err(format!("{parser} ended with {}: {}", ran.status, said.trim()));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(format!("run {parser}: {error}")),
            }
        }
        Err(format!(
            "the kernel has AppArmor, but there is no {PARSER}: install it (package apparmor) and restart the daemon"
        ))
    }

    /// The profile that a container runs under; `None` leaves it unconfined.
    pub fn profile(&self, spec: &ContainerSpec) -> Result<Option<String>, RuntimeError> {
        let default = if self.enabled && wants_default(spec) { Some(self.load_default()) } else { None };
        choose(spec, self.enabled, default, || std::fs::read_to_string(LOADED))
    }

    /// What a container asks for and doesn't get, as a sentence.
    pub fn missing(&self, spec: &ContainerSpec) -> Option<String> {
        if self.enabled && wants_default(spec) { self.load_default().err() } else { None }
    }
}

fn wants_default(spec: &ContainerSpec) -> bool {
    let asked = matches!(spec.apparmor, AppArmorProfile::Unspecified | AppArmorProfile::RuntimeDefault);
    asked && !spec.privileged
}

/// Decides a container's profile. `default` tells how loading the default one went, `loaded` reads the kernel's list.
fn choose(
    spec: &ContainerSpec,
    enabled: bool,
    default: Option<Result<(), String>>,
    loaded: impl FnOnce() -> std::io::Result<String>,
) -> Result<Option<String>, RuntimeError> {
    if spec.privileged {
        return Ok(None);
    }
    let refuse = |what: String| Err(RuntimeError::invalid(format!("container {}: {what}", spec.id)));
    match (&spec.apparmor, default) {
        (AppArmorProfile::Unspecified | AppArmorProfile::RuntimeDefault, Some(Ok(()))) => {
            Ok(Some(DEFAULT.to_owned()))
        }
        // Who asks for it by name shall not go without.
        (AppArmorProfile::RuntimeDefault, Some(Err(why))) => refuse(why),
        (AppArmorProfile::Localhost(name), _) if !enabled => refuse(format!(
            "the AppArmor profile {name:?} cannot be applied on this node, whose kernel runs without AppArmor: leave it \
             out, or boot with apparmor=1"
        )),
        (AppArmorProfile::Localhost(name), _) => match loaded() {
            Ok(list) if is_loaded(&list, name) => Ok(Some(name.clone())),
            Ok(_) => refuse(format!(
                "the AppArmor profile {name:?} is not loaded on this node: load it there with {PARSER}"
            )),
            Err(error) => refuse(format!(
                "whether the AppArmor profile {name:?} is loaded can't be told, {LOADED} can't be read ({error}): mount \
                 securityfs at /sys/kernel/security"
            )),
        },
        _ => Ok(None),
    }
}

/// Whether the kernel's list, a line `NAME (MODE)` for each profile, has this one.
fn is_loaded(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name))
}

/// A name that can't be taken for anything else in the command that the kernel is told.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = !name.is_empty() && name.len() <= 1024 && !name.chars().any(|c| c.is_control());
    if plain && name != "unconfined" {
        Ok(())
    } else {
        Err(format!("{name:?} can't be the name of a Localhost AppArmor profile"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ContainerId, SandboxId};

    const LIST: &str =
        "orlop-default (enforce)\nmine (complain)\n/usr/bin/man (enforce)\nwith space (enforce)\n";

    fn spec(apparmor: AppArmorProfile, privileged: bool) -> ContainerSpec {
        let (id, sandbox) = (ContainerId::new("c1").unwrap(), SandboxId::new("s1").unwrap());
        ContainerSpec { apparmor, privileged, ..ContainerSpec::new(id, sandbox, vec![], vec!["x".into()]) }
    }

    fn chosen(
        apparmor: AppArmorProfile,
        enabled: bool,
        default: Option<Result<(), String>>,
    ) -> Result<Option<String>, String> {
        choose(&spec(apparmor, false), enabled, default, || Ok(LIST.to_owned())).map_err(|e| e.to_string())
    }

    #[test]
    fn profiles_are_found_by_their_whole_name() {
        assert!(is_loaded(LIST, "mine") && is_loaded(LIST, "/usr/bin/man") && is_loaded(LIST, "with space"));
        assert!(!is_loaded(LIST, "min") && !is_loaded(LIST, "mine (complain)") && !is_loaded(LIST, ""));
    }

    #[test]
    fn what_was_asked_for_is_given_or_refused() {
        use AppArmorProfile::{Localhost, RuntimeDefault, Unconfined, Unspecified};
        let loaded = || Some(Ok(()));
        assert_eq!(chosen(RuntimeDefault, true, loaded()), Ok(Some(DEFAULT.into())));
        assert_eq!(chosen(Unspecified, true, loaded()), Ok(Some(DEFAULT.into())));
        assert_eq!(chosen(Unconfined, true, None), Ok(None));
        assert_eq!(chosen(Localhost("mine".into()), true, None), Ok(Some("mine".into())));
        assert!(chosen(Localhost("other".into()), true, None).unwrap_err().contains("is not loaded"));
        let failed = || Some(Err("no parser".to_owned()));
        assert!(chosen(RuntimeDefault, true, failed()).unwrap_err().contains("no parser"));
        assert_eq!(chosen(Unspecified, true, failed()), Ok(None), "nobody asked for it");
    }

    #[test]
    fn a_kernel_without_it_refuses_names_only() {
        use AppArmorProfile::{Localhost, RuntimeDefault, Unconfined, Unspecified};
        for fine in [RuntimeDefault, Unconfined, Unspecified] {
            assert_eq!(chosen(fine, false, None), Ok(None));
        }
        assert!(chosen(Localhost("mine".into()), false, None).unwrap_err().contains("without AppArmor"));
    }

    #[test]
    fn privileged_containers_are_unconfined() {
        let spec = spec(AppArmorProfile::Localhost("mine".into()), true);
        let chosen = choose(&spec, true, None, || Ok(LIST.to_owned()));
        assert_eq!(chosen.map_err(|e| e.to_string()), Ok(None));
    }

    #[test]
    fn names_are_names() {
        assert!(check_name("/usr/bin/x//child").is_ok());
        for bad in ["", "unconfined", "a\nb"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
