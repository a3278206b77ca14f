//! Which AppArmor profile a container asks for: by a field, or by the annotation that came before the fields.

use cri_api::v1 as cri;
use cri_api::v1::security_profile::ProfileType;
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod};

use crate::pod::view;

/// Annotation of a pod, with a container's name behind it.
const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// A container's profile: its own field, its annotation (static pods may have nothing else), the pod's field.
pub fn profile(pod: &Pod, container: &Container) -> Option<cri::SecurityProfile> {
    let own = container.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let noted = || {
        let annotations = pod.metadata.annotations.as_ref()?;
        annotated(annotations.get(&format!("{ANNOTATION}{}", container.name))?)
    };
    own.map(field).or_else(noted).or_else(|| of_pod(pod))
}

/// The pod's own profile.
pub fn of_pod(pod: &Pod) -> Option<cri::SecurityProfile> {
    let context = view::spec(pod).security_context.as_ref()?;
    context.app_armor_profile.as_ref().map(field)
}

/// Whether a pod asks for any confinement by AppArmor, so that a node without it can't run it.
pub fn is_required(pod: &Pod) -> bool {
    let confines = |profile: cri::SecurityProfile| profile.profile_type != ProfileType::Unconfined as i32;
    of_pod(pod).is_some_and(confines)
        || view::members(view::spec(pod)).any(|member| profile(pod, member.spec).is_some_and(confines))
}

fn field(profile: &AppArmorProfile) -> cri::SecurityProfile {
    match profile.type_.as_str() {
        "Localhost" => made(ProfileType::Localhost, profile.localhost_profile.as_deref().unwrap_or_default()),
        "Unconfined" => made(ProfileType::Unconfined, ""),
        _ => made(ProfileType::RuntimeDefault, ""),
    }
}

fn annotated(value: &str) -> Option<cri::SecurityProfile> {
    match value {
        "" => None,
        "runtime/default" => Some(made(ProfileType::RuntimeDefault, "")),
        "unconfined" => Some(made(ProfileType::Unconfined, "")),
        other => other.strip_prefix("localhost/").map(|name| made(ProfileType::Localhost, name)),
    }
}

fn made(kind: ProfileType, name: &str) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: kind as i32, localhost_ref: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(of_pod: serde_json::Value, own: serde_json::Value, annotation: Option<&str>) -> Pod {
        let annotations = annotation.map(|value| json!({ format!("{ANNOTATION}c"): value }));
        serde_json::from_value(json!({
            "metadata": { "name": "p", "annotations": annotations },
            "spec": {
                "securityContext": { "appArmorProfile": of_pod },
                "containers": [{ "name": "c", "securityContext": { "appArmorProfile": own } }],
            },
        }))
        .unwrap()
    }

    fn chosen(pod: &Pod) -> Option<(ProfileType, String)> {
        let profile = profile(pod, &view::spec(pod).containers[0])?;
        Some((ProfileType::try_from(profile.profile_type).unwrap(), profile.localhost_ref))
    }

    #[test]
    fn the_nearest_word_counts() {
        use serde_json::Value::Null;
        let localhost = |name: &str| json!({ "type": "Localhost", "localhostProfile": name });
        let named = |name: &str| Some((ProfileType::Localhost, name.to_owned()));
        assert_eq!(chosen(&pod(Null, Null, None)), None);
        assert_eq!(chosen(&pod(localhost("p"), Null, None)), named("p"));
        assert_eq!(chosen(&pod(localhost("p"), Null, Some("localhost/a"))), named("a"));
        assert_eq!(chosen(&pod(localhost("p"), localhost("c"), Some("localhost/a"))), named("c"));
        let unconfined = Some((ProfileType::Unconfined, String::new()));
        assert_eq!(chosen(&pod(localhost("p"), json!({ "type": "Unconfined" }), None)), unconfined);
        assert_eq!(chosen(&pod(Null, Null, Some("unconfined"))), unconfined);
        let default = Some((ProfileType::RuntimeDefault, String::new()));
        assert_eq!(chosen(&pod(Null, Null, Some("runtime/default"))), default);
    }

    #[test]
    fn only_confinement_needs_a_kernel_with_it() {
        use serde_json::Value::Null;
        let default = || json!({ "type": "RuntimeDefault" });
        assert!(!is_required(&pod(Null, Null, None)));
        assert!(!is_required(&pod(json!({ "type": "Unconfined" }), Null, Some("unconfined"))));
        assert!(is_required(&pod(default(), Null, None)));
        assert!(is_required(&pod(Null, default(), None)));
        assert!(is_required(&pod(Null, Null, Some("localhost/mine"))));
    }
}
