//! Rules of config maps and secrets.

use base64::Engine as _;
use serde_json::Value;

use super::errors::{Errors, IMMUTABLE, entries, flag, text};
use crate::names;

/// All values of one object together, bytes.
const MOST_DATA: usize = 1 << 20;

pub(super) fn config_map(object: &Value, e: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(object, "data") {
        let field = format!("data[{key}]");
        e.complain(&field, key, names::config_key(key));
        if object.get("binaryData").is_some_and(|b| b.get(key).is_some()) {
            e.invalid(&field, key, "duplicate of key present in binaryData");
        }
        size += value.as_str().unwrap_or("").len();
    }
    for (key, value) in entries(object, "binaryData") {
        e.complain(&format!("binaryData[{key}]"), key, names::config_key(key));
        size += decoded_len(value.as_str().unwrap_or(""));
    }
    if size > MOST_DATA {
        e.too_long("", MOST_DATA);
    }
}

fn decoded_len(base64: &str) -> usize {
    base64::engine::general_purpose::STANDARD.decode(base64).map_or(base64.len(), |b| b.len())
}

pub(super) fn secret(object: &Value, e: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(object, "data") {
        e.complain(&format!("data[{key}]"), key, names::config_key(key));
        size += decoded_len(value.as_str().unwrap_or(""));
    }
    if size > MOST_DATA {
        e.too_long("data", MOST_DATA);
    }
    let data = |key: &str| object.get("data").and_then(|d| d.get(key)).and_then(Value::as_str);
    let need = |key: &str, e: &mut Errors| {
        if data(key).is_none() {
            e.required(&format!("data[{key}]"), "");
        }
    };
    match text(object, "type") {
        "kubernetes.io/service-account-token" => {
            let account =
                crate::meta::at(object, &["metadata", "annotations", "kubernetes.io/service-account.name"]);
            if account.and_then(Value::as_str).unwrap_or("").is_empty() {
                e.required("metadata.annotations[kubernetes.io/service-account.name]", "");
            }
        }
        "kubernetes.io/dockercfg" => json_at(".dockercfg", data(".dockercfg"), e),
        "kubernetes.io/dockerconfigjson" => json_at(".dockerconfigjson", data(".dockerconfigjson"), e),
        "kubernetes.io/basic-auth" if data("username").is_none() && data("password").is_none() => {
            e.required("data[username]", "");
            e.required("data[password]", "");
        }
        "kubernetes.io/ssh-auth" => need("ssh-privatekey", e),
        "kubernetes.io/tls" => {
            need("tls.crt", e);
            need("tls.key", e);
        }
        _ => {}
    }
}

/// Never shows the value: it is a secret.
fn json_at(key: &str, value: Option<&str>, e: &mut Errors) {
    let field = format!("data[{key}]");
    let Some(value) = value else { return e.required(&field, "") };
    let bytes = base64::engine::general_purpose::STANDARD.decode(value).unwrap_or_default();
    if serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_err() {
        e.invalid(&field, "<secret contents redacted>", "must be valid JSON");
    }
}

/// Once immutable, the data and the flag stay as they are.
pub(super) fn immutable(object: &Value, stored: &Value, data: &[&str], e: &mut Errors) {
    if !flag(stored, "immutable") {
        return;
    }
    if !flag(object, "immutable") {
        e.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for key in data {
        if object.get(*key) != stored.get(*key) {
            e.forbidden(key, "field is immutable when `immutable` is set");
        }
    }
}

pub(super) fn secret_update(object: &Value, stored: &Value, e: &mut Errors) {
    if text(object, "type") != text(stored, "type") {
        e.invalid("type", text(object, "type"), IMMUTABLE);
    }
    immutable(object, stored, &["data"], e);
}
