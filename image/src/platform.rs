//! The platform of this machine, and how well an image's fits. Pure.

use std::fmt;

use serde::Deserialize;

/// Operating system, architecture and variant in Go's names, as image indexes have them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// E.g. `linux`.
    pub os: String,
    /// E.g. `amd64`.
    pub architecture: String,
    /// E.g. `v8`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

impl Platform {
    /// This machine's platform. The variant of an x86 machine is the best level its processor reaches.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", Some(x86_level())),
            "aarch64" => ("arm64", Some("v8")),
            other => (other, None),
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.map(Into::into) }
    }
}

#[cfg(target_arch = "x86_64")]
fn x86_level() -> &'static str {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("sse4.2") && has!("popcnt") && has!("ssse3")) {
        "v1"
    } else if !(has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("lzcnt")) {
        "v2"
    } else if !(has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl"))
    {
        "v3"
    } else {
        "v4"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn x86_level() -> &'static str {
    "v1"
}

/// How well an offer fits what is wanted: `None` not at all, else lower is better.
pub(crate) fn fit(offer: &Platform, wanted: &Platform) -> Option<u8> {
    if offer.os != wanted.os || offer.architecture != wanted.architecture {
        return None;
    }
    let level = |variant: &Option<String>| {
        variant.as_deref().filter(|v| !v.is_empty()).map(|v| v.trim_start_matches('v').parse::<u8>().ok())
    };
    match (level(&offer.variant), level(&wanted.variant)) {
        (None, _) => Some(u8::MAX),
        (Some(None), _) => None,
        (Some(Some(offer)), Some(Some(wanted))) if offer > wanted => None,
        (Some(Some(offer)), _) => Some(u8::MAX - 1 - offer.min(100)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amd64(variant: Option<&str>) -> Platform {
        Platform { os: "linux".into(), architecture: "amd64".into(), variant: variant.map(Into::into) }
    }

    #[test]
    fn prefers_the_best_level_that_runs() {
        let wanted = amd64(Some("v3"));
        let rank = |v| fit(&amd64(v), &wanted);
        assert_eq!(rank(Some("v4")), None);
        assert!(rank(Some("v3")) < rank(Some("v2")));
        assert!(rank(Some("v2")) < rank(None));
        assert_eq!(fit(&Platform { architecture: "arm64".into(), ..amd64(None) }, &wanted), None);
    }
}
