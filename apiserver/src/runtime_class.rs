//! What a runtime class adds to a pod: its overhead, and where it may run.
//!
//! Guarantees: a pod has an overhead only as its class says, and asks for no class that there isn't.

use std::sync::Arc;

use api::meta;
use api::quantity::Quantity;
use api::registry;
use serde_json::{Map, Value, json};

use crate::app::App;

/// Completes a new pod by its class, or says why it is refused.
pub(crate) fn admit(app: &Arc<App>, pod: &mut Value) -> Result<(), String> {
    let name = meta::str_at(pod, &["spec", "runtimeClassName"]).to_owned();
    let class = match name.as_str() {
        "" => None,
        name => {
            let row = registry::find("node.k8s.io", "v1", "runtimeclasses");
            let entry = row.and_then(|row| app.cached(row, "", name).ok());
            let entry = entry.ok_or_else(|| format!("pod rejected: RuntimeClass \"{name}\" not found"))?;
            Some(entry.value())
        }
    };
    complete(pod, class.as_ref())
}

fn complete(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    overhead(pod, class.and_then(|class| class.pointer("/overhead/podFixed")))?;
    let Some(scheduling) = class.and_then(|class| class.get("scheduling")) else { return Ok(()) };
    select(pod, scheduling.get("nodeSelector"))?;
    tolerate(pod, scheduling.get("tolerations"));
    Ok(())
}

fn overhead(pod: &mut Value, fixed: Option<&Value>) -> Result<(), String> {
    let empty = Map::new();
    let given = pod.pointer("/spec/overhead").and_then(Value::as_object).unwrap_or(&empty);
    let fixed = fixed.and_then(Value::as_object).filter(|fixed| !fixed.is_empty());
    let same = |fixed: &Map<String, Value>| {
        let equal = |(name, amount)| {
            given.get(name).is_some_and(|given| Quantity::of(Some(given)) == Quantity::of(Some(amount)))
        };
        fixed.len() == given.len() && fixed.iter().all(equal)
    };
    match fixed {
        None if given.is_empty() => Ok(()),
        None => {
            Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".into())
        }
        Some(fixed) if given.is_empty() => {
            pod["spec"]["overhead"] = json!(fixed);
            Ok(())
        }
        Some(fixed) if same(fixed) => Ok(()),
        Some(_) => Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into()),
    }
}

fn select(pod: &mut Value, labels: Option<&Value>) -> Result<(), String> {
    let Some(labels) = labels.and_then(Value::as_object).filter(|labels| !labels.is_empty()) else {
        return Ok(());
    };
    let spec = meta::object_mut(&mut pod["spec"]);
    let selector = meta::object_mut(spec.entry("nodeSelector").or_insert(json!({})));
    for (key, value) in labels {
        match selector.get(key) {
            Some(own) if own != value => {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(own)
                ));
            }
            _ => selector.insert(key.clone(), value.clone()),
        };
    }
    Ok(())
}

fn tolerate(pod: &mut Value, more: Option<&Value>) {
    let Some(more) = more.and_then(Value::as_array) else { return };
    let spec = meta::object_mut(&mut pod["spec"]);
    let Some(all) = spec.entry("tolerations").or_insert(json!([])).as_array_mut() else { return };
    for toleration in more {
        if !all.contains(toleration) {
            all.push(toleration.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class() -> Value {
        json!({
            "handler": "crun",
            "overhead": {"podFixed": {"cpu": "250m", "memory": "64Mi"}},
            "scheduling": {"nodeSelector": {"runtime": "crun"}, "tolerations": [{"key": "a", "operator": "Exists"}]},
        })
    }

    #[test]
    fn a_class_completes_a_pod_once() {
        let mut pod = json!({"spec": {"nodeSelector": {"zone": "a"}}});
        complete(&mut pod, Some(&class())).unwrap();
        let done = pod.clone();
        assert_eq!(pod["spec"]["overhead"], json!({"cpu": "250m", "memory": "64Mi"}));
        assert_eq!(pod["spec"]["nodeSelector"], json!({"zone": "a", "runtime": "crun"}));
        assert_eq!(pod["spec"]["tolerations"], json!([{"key": "a", "operator": "Exists"}]));
        complete(&mut pod, Some(&class())).unwrap();
        assert_eq!(pod, done);
    }

    #[test]
    fn contradictions_are_refused() {
        let refused =
            |spec: Value, class: Option<&Value>| complete(&mut json!({"spec": spec}), class).unwrap_err();
        let text = refused(json!({"overhead": {"cpu": "1"}}), None);
        assert!(text.contains("without corresponding RuntimeClass"), "{text}");
        let text = refused(json!({"overhead": {"cpu": "1"}}), Some(&class()));
        assert!(text.contains("doesn't match"), "{text}");
        let text = refused(json!({"nodeSelector": {"runtime": "other"}}), Some(&class()));
        assert!(
            text.starts_with("conflict: runtimeClass.scheduling.nodeSelector[runtime] = crun;"),
            "{text}"
        );
        // The same amounts in other words are the same.
        let mut pod = json!({"spec": {"overhead": {"cpu": "0.25", "memory": "65536Ki"}}});
        complete(&mut pod, Some(&class())).unwrap();
        complete(&mut json!({"spec": {}}), None).unwrap();
    }
}
