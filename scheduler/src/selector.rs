//! Node selectors and tolerations.

use std::collections::BTreeMap;

use api::k8s::core::{Node, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

/// Whether the node satisfies one term: all its expressions on labels and on fields. An empty term
/// matches nothing, as the API says.
pub fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    // The one field that nodes can be selected by.
    let name = BTreeMap::from([("metadata.name".to_owned(), node.metadata.name.clone().unwrap_or_default())]);
    expressions.iter().all(|r| requirement_matches(r, labels))
        && fields.iter().all(|r| requirement_matches(r, Some(&name)))
}

fn requirement_matches(
    requirement: &NodeSelectorRequirement,
    values: Option<&BTreeMap<String, String>>,
) -> bool {
    let value = values.and_then(|values| values.get(&requirement.key));
    let wanted = requirement.values.as_deref().unwrap_or_default();
    let compare = |larger: bool| -> bool {
        let numbers =
            value.and_then(|v| v.parse::<i64>().ok()).zip(wanted.first().and_then(|w| w.parse::<i64>().ok()));
        numbers.is_some_and(|(have, bound)| if larger { have > bound } else { have < bound })
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| wanted.contains(v)),
        "NotIn" => value.is_none_or(|v| !wanted.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        // Validation refuses other operators.
        _ => false,
    }
}

/// Whether one of the tolerations covers the taint.
pub fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|t| covers(t, taint))
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if set(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    let operator = set(&toleration.operator).unwrap_or_else(|| "Equal".to_owned());
    match set(&toleration.key) {
        None => operator == "Exists",
        Some(key) if key != taint.key => false,
        Some(_) if operator == "Exists" => true,
        Some(_) => set(&toleration.value).unwrap_or_default() == taint.value.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(term: serde_json::Value) -> bool {
        let node = json!({ "metadata": { "name": "n1", "labels": { "disk": "ssd", "cores": "8" } } });
        term_matches(&serde_json::from_value(term).unwrap(), &serde_json::from_value(node).unwrap())
    }

    #[test]
    fn every_operator() {
        let one = |operator, key, values: &[&str]| {
            matches(json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }))
        };
        assert!(
            one("In", "disk", &["hdd", "ssd"]) && !one("In", "disk", &["hdd"]) && !one("In", "gpu", &["a"])
        );
        assert!(
            one("NotIn", "disk", &["hdd"]) && one("NotIn", "gpu", &["a"]) && !one("NotIn", "disk", &["ssd"])
        );
        assert!(one("Exists", "disk", &[]) && !one("Exists", "gpu", &[]));
        assert!(one("DoesNotExist", "gpu", &[]) && !one("DoesNotExist", "disk", &[]));
        assert!(one("Gt", "cores", &["7"]) && !one("Gt", "cores", &["8"]) && one("Lt", "cores", &["9"]));
        assert!(!one("Gt", "disk", &["1"]));
    }

    #[test]
    fn an_empty_term_matches_nothing_and_fields_select_by_name() {
        assert!(!matches(json!({})));
        assert!(matches(
            json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }] })
        ));
    }

    #[test]
    fn tolerations() {
        let taint: Taint =
            serde_json::from_value(json!({ "key": "k", "value": "v", "effect": "NoSchedule" })).unwrap();
        let one = |t: serde_json::Value| tolerated(&taint, &[serde_json::from_value(t).unwrap()]);
        assert!(one(json!({ "operator": "Exists" })));
        assert!(one(json!({ "key": "k", "operator": "Exists" })));
        assert!(one(json!({ "key": "k", "value": "v" })));
        assert!(!one(json!({ "key": "k", "value": "w" })));
        assert!(!one(json!({ "key": "k", "operator": "Exists", "effect": "NoExecute" })));
        assert!(!one(json!({ "key": "other", "operator": "Exists" })));
    }
}
