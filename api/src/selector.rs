//! Label and field selectors.
//!
//! Guarantees: what parses prints back to an equal selector; matching never fails.
//! Assumes: labels are an object of strings, or null.

use std::fmt;

use serde_json::Value;

use crate::names;
use crate::registry::Resource;
use crate::status::Failure;

/// How a requirement compares.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    op: Op,
}

/// A parsed label selector: all requirements must hold; no requirement matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches no object.
    pub fn nothing() -> LabelSelector {
        LabelSelector { requirements: Vec::new(), nothing: true }
    }

    /// Parses the query parameter, like `a=b,c in (d,e),!f,g>1`.
    pub fn parse(text: &str) -> Result<LabelSelector, Failure> {
        let mut requirements = Vec::new();
        for part in split_top(text) {
            let part = part.trim();
            if part.is_empty() {
                if text.trim().is_empty() {
                    continue;
                }
                return Err(bad("found '', expected: identifier after ','"));
            }
            requirements.push(parse_requirement(part)?);
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// Reads a `LabelSelector` object (`matchLabels`, `matchExpressions`, also node selector operators). Absent
    /// (null) matches nothing, empty matches everything.
    pub fn from_object(object: &Value) -> Result<LabelSelector, Failure> {
        if object.is_null() {
            return Ok(LabelSelector::nothing());
        }
        let mut requirements = Vec::new();
        if let Some(labels) = object.get("matchLabels").and_then(Value::as_object) {
            for (key, value) in labels {
                requirements.push(equals(key, value.as_str().unwrap_or("")));
            }
        }
        for e in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            requirements.push(expression(e)?);
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// From a plain map of labels, as a Service's selector is; empty matches everything.
    pub fn from_map(labels: &Value) -> LabelSelector {
        let requirements = labels
            .as_object()
            .map(|m| m.iter().map(|(k, v)| equals(k, v.as_str().unwrap_or(""))).collect())
            .unwrap_or_default();
        LabelSelector { requirements, nothing: false }
    }

    /// Whether the labels (an object of strings, or null) fulfil every requirement.
    pub fn matches(&self, labels: &Value) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.holds(labels.get(&r.key).and_then(Value::as_str)))
    }

    /// The same for the typed labels of k8s-openapi.
    pub fn matches_map(&self, labels: Option<&std::collections::BTreeMap<String, String>>) -> bool {
        !self.nothing
            && self
                .requirements
                .iter()
                .all(|r| r.holds(labels.and_then(|l| l.get(&r.key)).map(String::as_str)))
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
}

fn equals(key: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), op: Op::In(vec![value.to_owned()]) }
}

fn expression(e: &Value) -> Result<Requirement, Failure> {
    let key = crate::meta::str_at(e, &["key"]).to_owned();
    let values: Vec<String> = e
        .get("values")
        .and_then(Value::as_array)
        .map(|v| v.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    let number = || values.first().and_then(|v| v.parse().ok());
    let op = match crate::meta::str_at(e, &["operator"]) {
        "In" => Op::In(values),
        "NotIn" => Op::NotIn(values),
        "Exists" => Op::Exists,
        "DoesNotExist" => Op::Absent,
        "Gt" => Op::Greater(
            number().ok_or_else(|| bad("for 'Gt', 'Lt' operators, the value must be an integer"))?,
        ),
        "Lt" => {
            Op::Less(number().ok_or_else(|| bad("for 'Gt', 'Lt' operators, the value must be an integer"))?)
        }
        other => {
            return Err(Failure::bad_request(format!("{other:?} is not a valid label selector operator")));
        }
    };
    Ok(Requirement { key, op })
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.op {
            Op::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Op::NotIn(values) => !value.is_some_and(|v| values.iter().any(|x| x == v)),
            Op::Exists => value.is_some(),
            Op::Absent => value.is_none(),
            Op::Greater(bound) => number().is_some_and(|n| n > *bound),
            Op::Less(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let key = &r.key;
            match &r.op {
                Op::In(v) if v.len() == 1 => write!(f, "{key}={}", v[0])?,
                Op::In(v) => write!(f, "{key} in ({})", v.join(","))?,
                Op::NotIn(v) if v.len() == 1 => write!(f, "{key}!={}", v[0])?,
                Op::NotIn(v) => write!(f, "{key} notin ({})", v.join(","))?,
                Op::Exists => write!(f, "{key}")?,
                Op::Absent => write!(f, "!{key}")?,
                Op::Greater(n) => write!(f, "{key}>{n}")?,
                Op::Less(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

/// Splits at commas outside of parentheses.
fn split_top(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut depth, mut start) = (0usize, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn bad(why: &str) -> Failure {
    Failure::bad_request(format!("unable to parse requirement: {why}"))
}

fn parse_requirement(part: &str) -> Result<Requirement, Failure> {
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Requirement { key: checked_key(key.trim())?, op: Op::Absent });
    }
    let end = part.find(|c: char| c.is_whitespace() || "=!<>(".contains(c)).unwrap_or(part.len());
    let key = checked_key(&part[..end])?;
    let rest = part[end..].trim();
    let op = if rest.is_empty() {
        Op::Exists
    } else if let Some(v) = rest.strip_prefix("!=") {
        Op::NotIn(vec![checked_value(&key, v.trim())?])
    } else if let Some(v) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
        Op::In(vec![checked_value(&key, v.trim())?])
    } else if let Some(v) = rest.strip_prefix('>') {
        Op::Greater(integer(v)?)
    } else if let Some(v) = rest.strip_prefix('<') {
        Op::Less(integer(v)?)
    } else if let Some(v) = rest.strip_prefix("notin") {
        Op::NotIn(set(&key, v)?)
    } else if let Some(v) = rest.strip_prefix("in") {
        Op::In(set(&key, v)?)
    } else {
        return Err(bad(&format!("found '{rest}', expected: in, notin, =, ==, !=, gt, lt")));
    };
    Ok(Requirement { key, op })
}

fn integer(text: &str) -> Result<i64, Failure> {
    text.trim().parse().map_err(|_| bad("for 'Gt', 'Lt' operators, the value must be an integer"))
}

fn set(key: &str, text: &str) -> Result<Vec<String>, Failure> {
    let inner = text
        .trim()
        .strip_prefix('(')
        .and_then(|t| t.strip_suffix(')'))
        .ok_or_else(|| bad(&format!("found '{}', expected: '('", text.trim())))?;
    inner.split(',').map(|v| checked_value(key, v.trim())).collect()
}

fn checked_key(key: &str) -> Result<String, Failure> {
    match names::qualified_name(key).into_iter().next() {
        None => Ok(key.to_owned()),
        Some(why) => Err(bad(&format!("key: Invalid value: {key:?}: {why}"))),
    }
}

fn checked_value(key: &str, value: &str) -> Result<String, Failure> {
    match names::label_value(value).into_iter().next() {
        None => Ok(value.to_owned()),
        Some(why) => Err(bad(&format!("values[0][{key}]: Invalid value: {value:?}: {why}"))),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    value: String,
    equal: bool,
}

/// A parsed field selector; its fields are supported by the kind it was parsed for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

/// The fields that objects of a kind can be selected by, besides `metadata.name` and `metadata.namespace`.
fn supported(row: &Resource) -> &'static [&'static str] {
    match (row.group, row.plural) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "namespaces") => &["status.phase", "name"],
        ("", "secrets") => &["type"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("apps", "replicasets") => &["status.replicas"],
        ("" | "events.k8s.io", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingComponent",
            "reportingController",
            "source",
            "type",
        ],
        _ => &[],
    }
}

impl FieldSelector {
    /// Parses the query parameter for one kind; an unsupported field is a BadRequest.
    pub fn parse(row: &Resource, text: &str) -> Result<FieldSelector, Failure> {
        let mut terms = Vec::new();
        for part in split_escaped(text) {
            if part.is_empty() {
                continue;
            }
            let (field, rest) = part.split_once('=').ok_or_else(|| {
                Failure::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'"))
            })?;
            let (field, equal) = match field.strip_suffix('!') {
                Some(f) => (f, false),
                None => (field, true),
            };
            let value = unescape(rest.strip_prefix('=').unwrap_or(rest));
            let field = field.trim();
            let known =
                matches!(field, "metadata.name" | "metadata.namespace") || supported(row).contains(&field);
            if !known {
                return Err(Failure::bad_request(format!("field label not supported: {field}")));
            }
            terms.push(Term { field: field.to_owned(), value, equal });
        }
        Ok(FieldSelector { terms })
    }

    /// Whether the object fulfils every term.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|t| (field_of(object, &t.field) == t.value) == t.equal)
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `field` must equal, when a term says so: `metadata.name=x` turns a list into a get.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

/// A field as selectors see it: always a text, absent is the type's zero.
fn field_of(object: &Value, field: &str) -> String {
    let other;
    let path = match field {
        "name" => "metadata.name",
        "spec.unschedulable" | "spec.hostNetwork" => {
            let set = crate::meta::at(object, &field.split('.').collect::<Vec<_>>());
            return set.and_then(Value::as_bool).unwrap_or(false).to_string();
        }
        "source" => {
            let direct = text_at(object, "source.component");
            let old = if direct.is_empty() { text_at(object, "deprecatedSource.component") } else { direct };
            return if old.is_empty() { field_of(object, "reportingComponent") } else { old };
        }
        "reportingComponent" | "reportingController" => {
            let core = text_at(object, "reportingComponent");
            return if core.is_empty() { text_at(object, "reportingController") } else { core };
        }
        f if f.starts_with("involvedObject.") && object.get("regarding").is_some() => {
            other = f.replacen("involvedObject", "regarding", 1);
            &other
        }
        f if f.starts_with("regarding.") && object.get("involvedObject").is_some() => {
            other = f.replacen("regarding", "involvedObject", 1);
            &other
        }
        f => f,
    };
    text_at(object, path)
}

fn text_at(object: &Value, path: &str) -> String {
    match crate::meta::at(object, &path.split('.').collect::<Vec<_>>()) {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::Bool(b)) => b.to_string(),
        _ => String::new(),
    }
}

/// Splits at commas that no backslash precedes.
fn split_escaped(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut escaped = false;
    for c in text.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            out.push(c);
            escaped = false;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(selector: &str, labels: Value, expected: bool) {
        let s = LabelSelector::parse(selector).expect(selector);
        assert_eq!(s.matches(&labels), expected, "{selector} on {labels}");
        assert_eq!(LabelSelector::parse(&s.to_string()).expect("printed form"), s);
    }

    #[test]
    fn label_grammar() {
        let l = || json!({"app": "web", "tier": "front", "n": "5"});
        for (s, e) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app!=web", false),
            ("x!=y", true),
            ("app in (web, db),tier", true),
            ("app notin (web)", false),
            ("x notin (web)", true),
            ("!x", true),
            ("! app", false),
            ("n>4,n<6", true),
            ("n > 5", false),
            ("app", true),
            ("app=", false),
            (" app = web ", true),
        ] {
            check(s, l(), e);
        }
        for bad in ["a b", "app in web", "=x", "app=a b", "a=b,,c", "n>x", "a/b/c"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn objects_select() {
        let s = LabelSelector::from_object(&json!({
            "matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}],
        }))
        .expect("selector");
        assert!(s.matches(&json!({"a": "b", "c": "d"})));
        assert!(!s.matches(&json!({"a": "b"})));
        assert!(!LabelSelector::from_object(&Value::Null).expect("nothing").matches(&json!({})));
        assert!(LabelSelector::from_object(&json!({})).expect("all").matches(&Value::Null));
    }

    #[test]
    fn field_selectors_know_their_kind() {
        let pods = crate::registry::find("", "v1", "pods").expect("row");
        let s = FieldSelector::parse(pods, "spec.nodeName=a,status.phase!=Failed").expect("selector");
        assert!(s.matches(&json!({"spec": {"nodeName": "a"}})));
        assert!(!s.matches(&json!({"spec": {"nodeName": "a"}, "status": {"phase": "Failed"}})));
        assert_eq!(s.exact("spec.nodeName"), Some("a"));
        let e = FieldSelector::parse(pods, "spec.foo=a").expect_err("unsupported");
        assert!(e.message.ends_with("field label not supported: spec.foo"), "{e}");
        let events = crate::registry::find("", "v1", "events").expect("row");
        let s = FieldSelector::parse(events, "involvedObject.name=p,type=Normal").expect("selector");
        assert!(s.matches(&json!({"regarding": {"name": "p"}, "type": "Normal"})));
    }
}
