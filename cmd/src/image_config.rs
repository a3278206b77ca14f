//! Settings of images: how they are pulled, kept and removed. Names follow KubeletConfiguration and the kubelet's
//! flags where they have one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::paths::Paths;

/// The settings as written.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageFile {
    serialize_image_pulls: Option<bool>,
    max_parallel_image_pulls: Option<usize>,
    /// Layers at the same time, for all pulls together.
    max_parallel_layers: Option<usize>,
    /// Layers at the same time, for one pull.
    max_parallel_layers_per_image: Option<usize>,
    /// Seconds without any progress after which a pull is given up.
    image_pull_progress_deadline: Option<u64>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<u32>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: Option<u32>,
    /// Seconds.
    #[serde(rename = "imageMinimumGCAge")]
    image_minimum_gc_age: Option<u64>,
    /// Seconds; 0: never.
    #[serde(rename = "imageMaximumGCAge")]
    image_maximum_gc_age: Option<u64>,
    /// Names that are never removed to make space, or the start of one and `*`.
    pinned_images: Vec<String>,
    foreign_layers: Option<Foreign>,
    image_credential_provider_config: Option<PathBuf>,
    image_credential_provider_bin_dir: Option<PathBuf>,
    image_pull_credentials_verification_policy: Option<Policy>,
    preloaded_images_verification_allowlist: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
enum Foreign {
    Refuse,
    Fetch,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
enum Policy {
    NeverVerify,
    NeverVerifyPreloadedImages,
    NeverVerifyAllowlistedImages,
    AlwaysVerify,
}

/// The settings as believed.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    pub store: image::Options,
    pub kubelet: kubelet::ImageSettings,
}

impl ImageFile {
    /// Fills in the defaults and refuses what contradicts itself.
    ///
    /// # Errors
    /// The first setting that can't be meant so.
    pub fn believe(self, paths: &Paths) -> anyhow::Result<ImageConfig> {
        let mut store = image::Options::default();
        let max_parallel_pulls = match (self.serialize_image_pulls, self.max_parallel_image_pulls) {
            (_, Some(0)) => bail!("maxParallelImagePulls can't be 0"),
            (Some(true), Some(2..)) => {
                bail!("serializeImagePulls is true and maxParallelImagePulls more than 1: choose one")
            }
            (Some(true), _) => Some(1),
            (_, most) => most,
        };
        let mut kubelet = kubelet::ImageSettings { max_parallel_pulls, ..Default::default() };
        store.pulls = kubelet.max_parallel_pulls.unwrap_or(store.pulls);
        store.parallel = self.max_parallel_layers.unwrap_or(store.parallel);
        store.per_pull = self.max_parallel_layers_per_image.unwrap_or(store.per_pull);
        ensure!(
            store.parallel > 0 && store.per_pull > 0,
            "maxParallelLayers and maxParallelLayersPerImage can't be 0"
        );
        if let Some(seconds) = self.image_pull_progress_deadline {
            ensure!(seconds > 0, "imagePullProgressDeadline can't be 0");
            store.stall = Duration::from_secs(seconds);
        }
        kubelet.gc_high_threshold_percent =
            self.image_gc_high_threshold_percent.unwrap_or(kubelet.gc_high_threshold_percent);
        kubelet.gc_low_threshold_percent =
            self.image_gc_low_threshold_percent.unwrap_or(kubelet.gc_low_threshold_percent);
        let (low, high) = (kubelet.gc_low_threshold_percent, kubelet.gc_high_threshold_percent);
        ensure!(
            low < high && high <= 100,
            "imageGCLowThresholdPercent ({low}) must be less than imageGCHighThresholdPercent ({high}), which is at most 100"
        );
        kubelet.minimum_gc_age =
            self.image_minimum_gc_age.map_or(kubelet.minimum_gc_age, Duration::from_secs);
        kubelet.maximum_gc_age =
            self.image_maximum_gc_age.map_or(kubelet.maximum_gc_age, Duration::from_secs);
        ensure!(
            kubelet.maximum_gc_age.is_zero() || kubelet.maximum_gc_age > kubelet.minimum_gc_age,
            "imageMaximumGCAge must be more than imageMinimumGCAge, or 0"
        );
        for name in self.pinned_images {
            let (start, end) = name.strip_suffix('*').map_or((name.as_str(), ""), |start| (start, "*"));
            let full = if end.is_empty() {
                let parsed = start.parse::<image::Reference>();
                parsed.with_context(|| format!("pinnedImages has {name:?}"))?.to_string()
            } else {
                name.clone()
            };
            store.pinned.push(full);
        }
        store.foreign = match self.foreign_layers {
            None | Some(Foreign::Refuse) => image::ForeignLayers::Refuse,
            Some(Foreign::Fetch) => image::ForeignLayers::Fetch,
        };
        kubelet.docker_configs.push(paths.data.join("kubelet/config.json"));
        if let Some(home) = std::env::var_os("HOME") {
            kubelet.docker_configs.push(PathBuf::from(home).join(".docker/config.json"));
        }
        kubelet.credential_provider_config = self.image_credential_provider_config;
        if let Some(programs) = self.image_credential_provider_bin_dir {
            kubelet.credential_provider_bin_dir = programs;
        }
        kubelet.verification = match self.image_pull_credentials_verification_policy {
            None => kubelet.verification,
            Some(Policy::NeverVerify) => kubelet::Verification::NeverVerify,
            Some(Policy::NeverVerifyPreloadedImages) => kubelet::Verification::NeverVerifyPreloadedImages,
            Some(Policy::NeverVerifyAllowlistedImages) => kubelet::Verification::NeverVerifyAllowlistedImages,
            Some(Policy::AlwaysVerify) => kubelet::Verification::AlwaysVerify,
        };
        ensure!(
            self.preloaded_images_verification_allowlist.is_empty()
                || kubelet.verification == kubelet::Verification::NeverVerifyAllowlistedImages,
            "preloadedImagesVerificationAllowlist needs imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages"
        );
        kubelet.preloaded_allowlist = self.preloaded_images_verification_allowlist;
        Ok(ImageConfig { store, kubelet })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(yaml: &str) -> anyhow::Result<ImageConfig> {
        let file: ImageFile =
            if yaml.is_empty() { ImageFile::default() } else { serde_yaml_ng::from_str(yaml)? };
        file.believe(&Paths::new(None))
    }

    #[test]
    fn settings_reach_their_places() {
        let config = load(
            "maxParallelImagePulls: 3\nimageMinimumGCAge: 7\nimageGCHighThresholdPercent: 50\nimageGCLowThresholdPercent: 40\npinnedImages: [pause, 'registry.local/base/*']\nforeignLayers: Fetch\nimagePullCredentialsVerificationPolicy: AlwaysVerify\n",
        )
        .expect("good settings");
        assert_eq!((config.store.pulls, config.kubelet.max_parallel_pulls), (3, Some(3)));
        assert_eq!(config.kubelet.minimum_gc_age, Duration::from_secs(7));
        assert_eq!(config.store.pinned, ["docker.io/library/pause:latest", "registry.local/base/*"]);
        assert_eq!(config.kubelet.verification, kubelet::Verification::AlwaysVerify);
        assert_eq!(load("serializeImagePulls: true").expect("fine").kubelet.max_parallel_pulls, Some(1));
        assert_eq!(load("").expect("fine").kubelet.max_parallel_pulls, None);
    }

    #[test]
    fn contradictions_are_refused() {
        for (yaml, expected) in [
            ("serializeImagePulls: true\nmaxParallelImagePulls: 2", "choose one"),
            ("imageGCLowThresholdPercent: 90", "must be less than"),
            ("imageMaximumGCAge: 60", "must be more than imageMinimumGCAge"),
            ("pinnedImages: ['A B']", "pinnedImages has \"A B\""),
            ("preloadedImagesVerificationAllowlist: [x]", "NeverVerifyAllowlistedImages"),
            ("imageGCHighThresholdPercent: 120", "at most 100"),
        ] {
            let err = load(yaml).expect_err("a contradiction").to_string();
            assert!(err.contains(expected), "{yaml}: {err}");
        }
    }
}
