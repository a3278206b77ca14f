//! Removes images that nobody uses: when the disk gets full, and when they were not used for long.
//!
//! Guarantees: an image that a container uses is not asked to be removed; one that the runtime itself still
//! needs (for a volume, a container that is just being made) it refuses to remove, which is no error.

pub mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1 as cri;
use tracing::{info, warn};

use crate::events::Level;
use crate::metrics::count;
use crate::shared::Shared;
use plan::{Disk, PlanError};

/// How often is looked.
const PERIOD: Duration = Duration::from_secs(300);

/// Why space was not made; the texts are those that operators know from elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The runtime does not answer.
    #[error("{step}: {message}")]
    Runtime {
        /// What was asked.
        step: &'static str,
        /// What it said.
        message: String,
    },
    /// The disk cannot be looked at.
    #[error("look at the disk of the images at {path}")]
    Disk {
        /// Where the runtime says that it is.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The disk makes no sense.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// There is not enough that may go.
    #[error(
        "Failed to garbage collect required amount of images. Attempted to free {goal} bytes, but only found {found} bytes eligible to free."
    )]
    Short {
        /// Bytes.
        goal: u64,
        /// Bytes.
        found: u64,
    },
}

/// Looks for ever.
pub async fn run(shared: Arc<Shared>) {
    let mut failed_before = false;
    loop {
        tokio::time::sleep(PERIOD).await;
        match round(&shared).await {
            Ok(freed) => {
                failed_before = false;
                if freed > 0 {
                    info!(bytes = freed, "images removed");
                }
            }
            Err(err) => {
                let node = &shared.config.node_name;
                let text = client::describe(&err);
                match &err {
                    GcError::Short { .. } => {
                        shared.events.node(node, Level::Warning, "FreeDiskSpaceFailed", text.clone());
                    }
                    GcError::Plan(_) => {
                        shared.events.node(node, Level::Warning, "InvalidDiskCapacity", text.clone());
                    }
                    _ => {}
                }
                // A runtime that has just started may not know its disk yet.
                if failed_before {
                    shared.events.node(node, Level::Warning, "ImageGCFailed", text.clone());
                }
                warn!(err = text, "make space among the images");
                failed_before = true;
            }
        }
    }
}

/// One look; returns the bytes that were freed.
pub(crate) async fn round(shared: &Shared) -> Result<u64, GcError> {
    let disk = disk(shared).await?;
    sweep(shared, disk).await
}

/// Removes what this state of the disk calls for.
pub(crate) async fn sweep(shared: &Shared, disk: Disk) -> Result<u64, GcError> {
    let runtime = |step| move |err: tonic::Status| GcError::Runtime { step, message: err.message().into() };
    let used = in_use(shared).await.map_err(runtime("list containers"))?;
    let listed = shared.cri.list_images(cri::ListImagesRequest { filter: None }).await;
    let listed = listed.map_err(runtime("list images"))?.images.into_iter().map(|image| {
        let names = image.repo_tags.iter().chain(&image.repo_digests);
        let is_used = used.contains(&image.id) || names.into_iter().any(|name| used.contains(name));
        (image.id, image.size, image.pinned, is_used)
    });
    let (listed, now) = (listed.collect(), shared.clock.now());
    let seen = shared.images.memory.lock().update(listed, now);
    let plan = plan::plan(&seen, disk, &shared.config.images, now)?;
    let size = |id: &String| seen.iter().find(|i| i.id == *id).map_or(0, |i| i.size);
    let mut freed_by_age = 0;
    for id in &plan.old {
        freed_by_age += if remove(shared, id).await { size(id) } else { 0 };
    }
    let goal = plan.goal.saturating_sub(freed_by_age);
    let mut freed = 0;
    for (id, size) in &plan.candidates {
        if freed >= goal {
            break;
        }
        freed += if remove(shared, id).await { *size } else { 0 };
    }
    if freed < goal {
        return Err(GcError::Short { goal, found: freed });
    }
    Ok(freed + freed_by_age)
}

/// What containers name, running or not: ids and names of images.
async fn in_use(shared: &Shared) -> Result<BTreeSet<String>, tonic::Status> {
    let all = shared.cri.list_containers(cri::ListContainersRequest { filter: None }).await?;
    let names = all.containers.iter().flat_map(|c| {
        let asked = c.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        [c.image_ref.clone(), c.image_id.clone(), asked]
    });
    Ok(names.filter(|name| !name.is_empty()).collect())
}

/// Whether it is gone now.
async fn remove(shared: &Shared, id: &str) -> bool {
    let spec = cri::ImageSpec { image: id.into(), ..Default::default() };
    match shared.cri.remove_image(cri::RemoveImageRequest { image: Some(spec) }).await {
        Ok(_) => {
            info!(image = id, "image removed");
            count(&shared.metrics.images_removed);
            shared.images.records.forget(id);
            true
        }
        Err(err) => {
            // Somebody uses it whom no list of containers shows.
            if err.code() == tonic::Code::FailedPrecondition {
                shared.images.memory.lock().touch(id, shared.clock.now());
            }
            info!(image = id, err = err.message(), "image stays");
            false
        }
    }
}

/// The disk that the runtime keeps its images on.
async fn disk(shared: &Shared) -> Result<Disk, GcError> {
    let runtime = |message: String| GcError::Runtime { step: "ask for the images' file system", message };
    let info = shared.cri.image_fs_info(cri::ImageFsInfoRequest {}).await;
    let info = info.map_err(|err| runtime(err.message().into()))?;
    let path = info.image_filesystems.into_iter().next().and_then(|fs| fs.fs_id).map(|id| id.mountpoint);
    let path = path.ok_or_else(|| runtime("it names none".into()))?;
    match rustix::fs::statvfs(path.as_str()) {
        Ok(fs) => Ok(Disk {
            capacity: fs.f_blocks.saturating_mul(fs.f_frsize),
            available: fs.f_bavail.saturating_mul(fs.f_frsize),
        }),
        Err(err) => Err(GcError::Disk { path, source: err.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    fn disk(available: u64) -> Disk {
        Disk { capacity: 1000, available }
    }

    #[tokio::test(start_paused = true)]
    async fn unused_images_go_and_used_ones_stay() {
        let bench = Bench::new();
        bench.fake.put_image("used", 100, false);
        bench.fake.put_image("pinned", 100, true);
        bench.fake.put_image("volume", 100, false);
        bench.fake.put_image("idle", 100, false);
        bench.fake.use_image("used");
        bench.fake.refuse_to_remove("volume");
        // Too young, all of them.
        assert!(matches!(sweep(&bench.shared, disk(100)).await, Err(GcError::Short { goal: 100, found: 0 })));
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(sweep(&bench.shared, disk(100)).await.expect("made space"), 100);
        assert_eq!(bench.fake.image_ids(), ["pinned", "used", "volume"]);
        let err = sweep(&bench.shared, disk(100)).await.expect_err("nothing is left to remove");
        assert!(err.to_string().contains("Attempted to free 100 bytes, but only found 0 bytes"), "{err}");
        assert_eq!(sweep(&bench.shared, disk(300)).await.expect("enough"), 0);
    }
}
