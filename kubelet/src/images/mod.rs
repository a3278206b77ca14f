//! Makes sure that a container's image is there, as its pull policy says.

pub mod credentials;
pub mod gc;
pub mod keyring;
pub mod records;

use std::sync::Arc;
use std::time::Duration;

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::ImageSettings;
use crate::container::env::Lookup;
use crate::container::security::ImageUser;
use crate::events::Level;
use crate::pod::view::{self, Member};
use crate::shared::Shared;
use crate::status::go_duration;

/// What a kubelet needs for its images, beside the runtime.
pub struct Images {
    /// Pulls at a time, in the order of asking; `None`: as many as want.
    turns: Option<Semaphore>,
    keyring: keyring::Keyring,
    /// Who may use what.
    pub records: records::Records,
    /// What was used when.
    pub memory: Mutex<gc::plan::Memory>,
}

impl Images {
    /// By the settings; records lie below `root`.
    ///
    /// # Errors
    /// The credential provider plugins cannot be used.
    pub fn open(
        settings: &ImageSettings,
        root: &std::path::Path,
    ) -> Result<Images, keyring::plugin::PluginError> {
        let plugins = match &settings.credential_provider_config {
            Some(config) => keyring::plugin::Plugins::open(config, &settings.credential_provider_bin_dir)?,
            None => keyring::plugin::Plugins::default(),
        };
        let allowed = settings.preloaded_allowlist.clone();
        Ok(Images {
            turns: settings.max_parallel_pulls.map(|most| Semaphore::new(most.max(1))),
            keyring: keyring::Keyring { docker: settings.docker_configs.clone(), plugins },
            records: records::Records::new(root.join("image_manager"), settings.verification, allowed),
            memory: Mutex::default(),
        })
    }
}

/// An image that is there.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Its id: containers are made from exactly this one.
    pub id: String,
    /// Whom it wants to run as.
    pub user: ImageUser,
}

/// Why an image is not there; `reason` is what the container's waiting state says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, `ImageInspectError`.
    pub reason: &'static str,
    /// What happened.
    pub message: String,
}

/// When to pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    IfNotPresent,
    Never,
}

/// Looks for the image and pulls it if the policy says so.
pub async fn ensure(
    shared: &Shared,
    pod: &Pod,
    member: &Member<'_>,
    objects: &dyn LookupSync,
    sandbox: cri::PodSandboxConfig,
    cancel: &CancellationToken,
) -> Result<Ready, NotReady> {
    let image = member.spec.image.clone().unwrap_or_default();
    let event = |level, reason, text: String| {
        shared.events.pod(pod, Some(member.field_path()), level, reason, text);
    };
    if let Err(why) = check_name(&image) {
        let message = format!(
            "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": {why}"
        );
        event(Level::Warning, "InspectFailed", message.clone());
        return Err(NotReady { reason: "InvalidImageName", message });
    }
    let present = status(shared, &image).await.map_err(|err| NotReady {
        reason: "ImageInspectError",
        message: format!("Failed to inspect image \"{image}\": {err}"),
    })?;
    let references = view::spec(pod).image_pull_secrets.iter().flatten();
    let secrets: Vec<Arc<Secret>> = references.filter_map(|r| objects.secret(&r.name)).collect();
    let borrowed: Vec<&Secret> = secrets.iter().map(AsRef::as_ref).collect();
    let own = keyring::of_secrets(&image, &borrowed);
    match (policy(member.spec), present) {
        (Policy::Never, None) => {
            let message = format!("Container image \"{image}\" is not present with pull policy of Never");
            event(Level::Warning, "ErrImageNeverPull", message.clone());
            return Err(NotReady { reason: "ErrImageNeverPull", message });
        }
        (policy @ (Policy::Never | Policy::IfNotPresent), Some(found)) => {
            if !shared.images.records.must_pull(&image, &found.id, &own) {
                let text = format!("Container image \"{image}\" already present on machine");
                event(Level::Normal, "Pulled", text);
                return Ok(ready(shared, &found));
            }
            if policy == Policy::Never {
                let message = format!(
                    "Container image \"{image}\" is present, but was pulled with credentials that this pod does not have, and its pull policy is Never"
                );
                event(Level::Warning, "ErrImageNeverPull", message.clone());
                return Err(NotReady { reason: "ErrImageNeverPull", message });
            }
        }
        (Policy::Always, _) | (Policy::IfNotPresent, None) => {}
    }
    event(Level::Normal, "Pulling", format!("Pulling image \"{image}\""));
    let asked = Instant::now();
    let pulled = pull(shared, &image, own, sandbox, cancel).await;
    let found = match pulled {
        Ok(done) => match status(shared, &image).await {
            Ok(found) => Ok((found, done)),
            Err(err) => Err(err.message().to_owned()),
        },
        Err(err) => Err(err),
    };
    match found {
        Ok((Some(found), done)) => {
            let noted = shared.images.records.pulled(&image, &found.id, done.with.as_ref());
            if let Err(err) = noted {
                warn!(image, %err, "note who pulled an image; other pods will have to pull it, too");
            }
            let shown = |took: Duration| go_duration(Duration::from_millis(took.as_millis() as u64));
            event(
                Level::Normal,
                "Pulled",
                format!(
                    "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {} bytes.",
                    shown(done.took),
                    shown(asked.elapsed()),
                    found.size
                ),
            );
            Ok(ready(shared, &found))
        }
        Ok((None, _)) => Err(NotReady {
            reason: "ErrImagePull",
            message: format!("image \"{image}\" was pulled and is not there"),
        }),
        Err(message) => {
            if !cancel.is_cancelled() {
                event(Level::Warning, "Failed", format!("Failed to pull image \"{image}\": {message}"));
            }
            Err(NotReady { reason: "ErrImagePull", message })
        }
    }
}

/// A lookup that can be used across threads.
pub trait LookupSync: Lookup + Send + Sync {}
impl<T: Lookup + Send + Sync> LookupSync for T {}

async fn status(shared: &Shared, image: &str) -> Result<Option<cri::Image>, tonic::Status> {
    let spec = cri::ImageSpec { image: image.into(), ..Default::default() };
    let answer =
        shared.cri.image_status(cri::ImageStatusRequest { image: Some(spec), verbose: false }).await?;
    Ok(answer.image.filter(|i| !i.id.is_empty()))
}

/// A pull that went well.
struct Done {
    /// The credentials that did it; `None`: none were needed.
    with: Option<keyring::Credential>,
    /// How long it took, without waiting for its turn.
    took: Duration,
}

/// Waits for its turn, then tries each credential that matches, or none if there are none.
async fn pull(
    shared: &Shared,
    image: &str,
    own: Vec<keyring::Credential>,
    sandbox: cri::PodSandboxConfig,
    cancel: &CancellationToken,
) -> Result<Done, String> {
    let ending = || "the pod is ending".to_owned();
    let _turn = match &shared.images.turns {
        None => None,
        // Cancel-safe: a dropped wait leaves the queue.
        Some(turns) => match cancel.run_until_cancelled(turns.acquire()).await {
            Some(turn) => turn.ok(),
            None => return Err(ending()),
        },
    };
    let began = Instant::now();
    // Cancel-safe: a plugin whose answer nobody waits for is killed.
    let found = cancel.run_until_cancelled(shared.images.keyring.lookup(image, own)).await;
    let mut attempts: Vec<Option<keyring::Credential>> =
        found.ok_or_else(ending)?.into_iter().map(Some).collect();
    if attempts.is_empty() {
        attempts.push(None);
    }
    let running = shared.images.records.begin(image);
    let _running = running.map_err(|err| format!("note the pull: {err}"))?;
    let mut errors: Vec<String> = Vec::new();
    for with in attempts {
        let request = cri::PullImageRequest {
            image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
            auth: with.as_ref().map(|c| c.auth.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        // Cancel-safe: the runtime goes on with or drops a pull that nobody waits for.
        match cancel.run_until_cancelled(shared.cri.pull_image(request)).await {
            Some(Ok(_)) => return Ok(Done { with, took: began.elapsed() }),
            Some(Err(err)) => errors.push(err.message().to_owned()),
            None => return Err(ending()),
        }
    }
    errors.dedup();
    Err(errors.join("; "))
}

fn policy(spec: &Container) -> Policy {
    match spec.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("Never") => Policy::Never,
        Some(_) => Policy::IfNotPresent,
        None => {
            let image = spec.image.as_deref().unwrap_or("");
            let tag = image.rsplit('/').next().unwrap_or("").split_once(':').map(|(_, tag)| tag);
            let fixed = image.contains('@') || tag.is_some_and(|t| t != "latest");
            if fixed { Policy::IfNotPresent } else { Policy::Always }
        }
    }
}

fn ready(shared: &Shared, image: &cri::Image) -> Ready {
    shared.images.memory.lock().touch(&image.id, shared.clock.now());
    let user = match (&image.uid, image.username.as_str()) {
        (Some(uid), _) => ImageUser::Uid(uid.value),
        (None, "") => ImageUser::Unset,
        (None, name) => ImageUser::Name(name.into()),
    };
    Ready { id: image.id.clone(), user }
}

/// Whether the text can be an image's name at all.
fn check_name(image: &str) -> Result<(), &'static str> {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let (registry, rest) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, name),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let component = |part: &str| {
        part.starts_with(lower)
            && part.ends_with(lower)
            && part.chars().all(|c| lower(c) || "._-".contains(c))
    };
    if path.chars().any(|c| c.is_ascii_uppercase()) && registry.is_none_or(|r| !r.is_empty()) {
        return Err("repository name must be lowercase");
    }
    let tag_fine = |tag: &str| {
        !tag.is_empty()
            && tag.len() <= 128
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            && !tag.starts_with(['.', '-'])
    };
    let digest_fine = |d: &str| {
        d.split_once(':').is_some_and(|(alg, hex)| {
            !alg.is_empty() && hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit())
        })
    };
    let fine = path.split('/').all(component) && tag.is_none_or(tag_fine) && digest.is_none_or(digest_fine);
    if fine { Ok(()) } else { Err("invalid reference format") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_names_are_told_from_good_ones() {
        for good in [
            "nginx",
            "nginx:1.2",
            "a.b:5000/c/d:t",
            "localhost/x",
            "x@sha256:0123456789abcdef0123456789abcdef",
            "a/b_c-d",
        ] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "NGINX", "a b", "a:", "a//b", "a@sha256:zz", "-a", "a:b:c d", "/a"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
