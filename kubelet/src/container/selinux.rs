//! SELinux labels that pods ask for. Pure.

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, SELinuxOptions};

use crate::pod::view;

/// The label of a pod.
pub fn of_pod(pod: &Pod) -> Option<cri::SeLinuxOption> {
    let context = view::spec(pod).security_context.as_ref();
    context.and_then(|context| context.se_linux_options.as_ref()).and_then(label)
}

/// The label of a container: its own, else its pod's; they aren't mixed.
pub fn of_container(pod: &Pod, container: &Container) -> Option<cri::SeLinuxOption> {
    let own = container.security_context.as_ref().and_then(|context| context.se_linux_options.as_ref());
    own.and_then(label).or_else(|| of_pod(pod))
}

/// Whether a pod asks for any label, so that it needs a kernel with SELinux.
pub fn is_required(pod: &Pod) -> bool {
    of_pod(pod).is_some()
        || view::members(view::spec(pod)).any(|member| of_container(pod, member.spec).is_some())
}

/// Nothing for a label that says nothing.
fn label(options: &SELinuxOptions) -> Option<cri::SeLinuxOption> {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let label = cri::SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    };
    Some(label).filter(|label| *label != cri::SeLinuxOption::default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(of_pod: Value, own: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "p" },
            "spec": {
                "securityContext": { "seLinuxOptions": of_pod },
                "containers": [{ "name": "c", "securityContext": { "seLinuxOptions": own } }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn the_nearest_label_counts_as_a_whole() {
        let chosen = |pod: &Pod| {
            let label = of_container(pod, &view::spec(pod).containers[0])?;
            Some([label.user, label.role, label.r#type, label.level].join(":"))
        };
        assert_eq!(chosen(&pod(Value::Null, Value::Null)), None);
        assert_eq!(chosen(&pod(json!({ "level": "s0:c1" }), Value::Null)).as_deref(), Some(":::s0:c1"));
        let both = pod(json!({ "level": "s0:c1" }), json!({ "type": "spc_t", "user": "u", "role": "r" }));
        assert_eq!(chosen(&both).as_deref(), Some("u:r:spc_t:"));
        assert_eq!(chosen(&pod(json!({ "level": "s0:c1" }), json!({}))).as_deref(), Some(":::s0:c1"));
    }

    #[test]
    fn only_a_label_needs_a_kernel_with_it() {
        assert!(is_required(&pod(Value::Null, json!({ "level": "s0" }))));
        assert!(is_required(&pod(json!({ "level": "s0" }), Value::Null)));
        assert!(!is_required(&pod(json!({}), json!({ "type": "" }))));
    }
}
