//! Tests of server-side apply.

use super::*;
use crate::registry::find_kind;
use expect_test::expect;

fn row() -> &'static Resource {
    find_kind("apps", "v1", "Deployment").expect("row")
}

fn by(manager: &str) -> Writer<'_> {
    Writer { manager, subresource: "", force: false, now: "2024-01-01T00:00:00Z".parse().expect("time") }
}

fn web(replicas: Option<i64>, image: &str) -> Value {
    let mut v = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"a": "b"}},
        "spec": {"template": {"spec": {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 80}]}]}}}});
    if let Some(n) = replicas {
        v["spec"]["replicas"] = json!(n);
    }
    v
}

#[test]
fn a_new_object_is_owned() {
    let out = apply(row(), None, &web(Some(1), "i"), &by("one")).expect("made");
    expect![[r#"[{"apiVersion":"apps/v1","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:labels":{"f:a":{}}},"f:spec":{"f:replicas":{},"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{},"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{}}}}}}}}},"manager":"one","operation":"Apply","time":"2024-01-01T00:00:00Z"}]"#]]
        .assert_eq(&out["metadata"]["managedFields"].to_string());
    let mut later = by("one");
    later.now = "2025-01-01T00:00:00Z".parse().expect("time");
    assert_eq!(apply(row(), Some(&out), &web(Some(1), "i"), &later).expect("again"), out, "nothing changed");
}

#[test]
fn others_fields_conflict() {
    let one = apply(row(), None, &web(Some(1), "i"), &by("one")).expect("made");
    let f = apply(row(), Some(&one), &web(Some(2), "j"), &by("two")).expect_err("conflict");
    expect![[r#"
        Apply failed with 2 conflicts: conflicts:
        - conflict with "one" using apps/v1: .spec.replicas
        - conflict with "one" using apps/v1: .spec.template.spec.containers[name="c"].image"#]]
    .assert_eq(&f.message);
    assert_eq!((f.code, f.details.expect("details").causes.len()), (409, 2));
    // The same values are shared, not fought over.
    let both = apply(row(), Some(&one), &web(Some(1), "i"), &by("two")).expect("shared");
    assert_eq!(managers(&both).len(), 2);
    let forced =
        apply(row(), Some(&one), &web(Some(2), "j"), &Writer { force: true, ..by("two") }).expect("forced");
    assert_eq!(forced["spec"]["replicas"], 2);
    assert!(!managers(&forced)[0].fields.paths().contains(&".spec.replicas".to_owned()));
}

#[test]
fn what_is_no_longer_stated_goes() {
    let one = apply(row(), None, &web(Some(1), "i"), &by("one")).expect("made");
    let out = apply(row(), Some(&one), &web(None, "i"), &by("one")).expect("applied");
    assert!(out["spec"].get("replicas").is_none());
    // A field that another manager owns, too, stays.
    let both =
        apply(row(), Some(&one), &json!({"metadata": {"name": "web"}, "spec": {"replicas": 1}}), &by("two"))
            .expect("shared");
    let out = apply(row(), Some(&both), &web(None, "i"), &by("one")).expect("applied");
    assert_eq!(out["spec"]["replicas"], 1);
    // A container goes as a whole, unless another manager has a field of it.
    let mut none = web(Some(1), "i");
    none["spec"]["template"]["spec"]["containers"] = json!([{"name": "d", "image": "j"}]);
    let out = apply(row(), Some(&one), &none, &by("one")).expect("applied");
    assert_eq!(out["spec"]["template"]["spec"]["containers"], json!([{"name": "d", "image": "j"}]));
}

#[test]
fn plain_writes_take_fields_over() {
    let one = apply(row(), None, &web(Some(1), "i"), &by("one")).expect("made");
    let mut scaled = one.clone();
    scaled["spec"]["replicas"] = json!(5);
    track(row(), Some(&one), &mut scaled, &by("scaler")).expect("tracked");
    let list = managers(&scaled);
    assert_eq!(
        (list.len(), list[1].name.as_str(), list[1].fields.paths()),
        (2, "scaler", vec![".spec.replicas".to_owned()])
    );
    let f = apply(row(), Some(&scaled), &web(Some(1), "i"), &by("one")).expect_err("conflict");
    expect![[r#"Apply failed with 1 conflict: conflict with "scaler" using apps/v1: .spec.replicas"#]]
        .assert_eq(&f.message);
    let out = apply(row(), Some(&scaled), &web(None, "i"), &by("one")).expect("let go");
    assert_eq!(out["spec"]["replicas"], 5);
    let mut same = scaled.clone();
    track(row(), Some(&scaled), &mut same, &by("reader")).expect("tracked");
    assert_eq!(same, scaled);
}

#[test]
fn sets_read_back() {
    for m in managers(&apply(row(), None, &web(Some(1), "i"), &by("one")).expect("made")) {
        assert_eq!(FieldSet::from_value(&m.fields.to_value()), m.fields);
    }
}
