//! Rules of a pod's volumes.

use std::collections::HashSet;

use serde_json::Value;

use super::container::{field_ref, resource_ref};
use super::errors::{Errors, items, number, text};
use crate::names;
use crate::quantity::Quantity;

/// Checks the volumes; answers with their names.
pub(super) fn volumes<'a>(spec: &'a Value, path: &str, e: &mut Errors) -> HashSet<&'a str> {
    let mut seen = HashSet::new();
    for (field, v) in items(spec, path, "volumes") {
        let name = text(v, "name");
        if name.is_empty() {
            e.required(&format!("{field}.name"), "");
        } else {
            e.complain(&format!("{field}.name"), name, names::dns1123_label(name));
            if !seen.insert(name) {
                e.duplicate(&format!("{field}.name"), name);
            }
        }
        source(v, &field, e);
    }
    seen
}

fn source(volume: &Value, field: &str, e: &mut Errors) {
    let mut kinds = 0;
    for (kind, body) in volume.as_object().into_iter().flatten().filter(|(k, _)| *k != "name") {
        kinds += 1;
        let path = format!("{field}.{kind}");
        if kinds > 1 {
            e.forbidden(&path, "may not specify more than 1 volume type");
            continue;
        }
        match kind.as_str() {
            "emptyDir" => {
                if let Some(size) = body.get("sizeLimit")
                    && Quantity::of(Some(size)).is_negative()
                {
                    e.forbidden(
                        &format!("{path}.sizeLimit"),
                        "SizeLimit field must be a valid resource quantity",
                    );
                }
            }
            "hostPath" => host_path(body, &path, e),
            "configMap" => {
                if text(body, "name").is_empty() {
                    e.required(&format!("{path}.name"), "");
                }
                files(body, &path, e);
            }
            "secret" => {
                if text(body, "secretName").is_empty() {
                    e.required(&format!("{path}.secretName"), "");
                }
                files(body, &path, e);
            }
            "downwardAPI" => {
                mode(body, "defaultMode", &path, e);
                downward(body, &path, e);
            }
            "projected" => projected(body, &path, e),
            "persistentVolumeClaim" if text(body, "claimName").is_empty() => {
                e.required(&format!("{path}.claimName"), "");
            }
            "nfs" => {
                for key in ["server", "path"] {
                    if text(body, key).is_empty() {
                        e.required(&format!("{path}.{key}"), "");
                    }
                }
            }
            "csi" if text(body, "driver").is_empty() => e.required(&format!("{path}.driver"), ""),
            "image" => {
                e.one_of(body, &path, "pullPolicy", &["Always", "IfNotPresent", "Never"]);
                if text(body, "reference").is_empty() {
                    e.required(&format!("{path}.reference"), "");
                }
            }
            _ => {}
        }
    }
    if kinds == 0 {
        e.required(field, "must specify a volume type");
    }
}

fn host_path(body: &Value, path: &str, e: &mut Errors) {
    let host = text(body, "path");
    if host.is_empty() {
        e.required(&format!("{path}.path"), "");
    } else if host.split('/').any(|p| p == "..") {
        e.invalid(&format!("{path}.path"), host, "must not contain '..'");
    }
    e.one_of(
        body,
        path,
        "type",
        &["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"],
    );
}

fn mode(body: &Value, key: &str, path: &str, e: &mut Errors) {
    if let Some(m) = number(body, key)
        && !(0..=0o777).contains(&m)
    {
        e.invalid(&format!("{path}.{key}"), m, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// A path that stays below its volume.
pub(super) fn relative(target: &str, field: &str, e: &mut Errors) {
    if target.is_empty() {
        return e.required(field, "");
    }
    if target.starts_with('/') {
        e.invalid(field, target, "must be a relative path");
    }
    if target.split('/').any(|p| p == "..") {
        e.invalid(field, target, "must not contain '..'");
    }
}

/// Keys and the files they become.
fn files(body: &Value, path: &str, e: &mut Errors) {
    mode(body, "defaultMode", path, e);
    for (field, item) in items(body, path, "items") {
        if text(item, "key").is_empty() {
            e.required(&format!("{field}.key"), "");
        }
        relative(text(item, "path"), &format!("{field}.path"), e);
        if text(item, "path").starts_with("..") && !text(item, "path").starts_with("../") {
            e.invalid(&format!("{field}.path"), text(item, "path"), "must not start with '..'");
        }
        mode(item, "mode", &field, e);
    }
}

fn downward(body: &Value, path: &str, e: &mut Errors) {
    for (field, item) in items(body, path, "items") {
        relative(text(item, "path"), &format!("{field}.path"), e);
        mode(item, "mode", &field, e);
        match (item.get("fieldRef"), item.get("resourceFieldRef")) {
            (Some(_), Some(_)) => e.invalid(
                &field,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            ),
            (Some(f), None) => field_ref(f, &format!("{field}.fieldRef"), false, e),
            (None, Some(r)) => {
                if text(r, "containerName").is_empty() {
                    e.required(&format!("{field}.resourceFieldRef.containerName"), "");
                }
                resource_ref(r, &format!("{field}.resourceFieldRef"), e);
            }
            (None, None) => e.required(&field, "one of fieldRef and resourceFieldRef is required"),
        }
    }
}

fn projected(body: &Value, path: &str, e: &mut Errors) {
    mode(body, "defaultMode", path, e);
    for (field, source) in items(body, path, "sources") {
        let mut kinds = 0;
        for (kind, part) in source.as_object().into_iter().flatten() {
            kinds += 1;
            let path = format!("{field}.{kind}");
            if kinds > 1 {
                e.forbidden(&path, "may not specify more than 1 volume type");
                continue;
            }
            match kind.as_str() {
                "configMap" | "secret" => {
                    if text(part, "name").is_empty() {
                        e.required(&format!("{path}.name"), "");
                    }
                    files(part, &path, e);
                }
                "downwardAPI" => downward(part, &path, e),
                "serviceAccountToken" => {
                    relative(text(part, "path"), &format!("{path}.path"), e);
                    let life = number(part, "expirationSeconds").unwrap_or(3600);
                    if life < 600 {
                        e.invalid(
                            &format!("{path}.expirationSeconds"),
                            life,
                            "may not specify a duration less than 10 minutes",
                        );
                    } else if life > 1 << 32 {
                        e.invalid(
                            &format!("{path}.expirationSeconds"),
                            life,
                            "may not specify a duration larger than 2^32 seconds",
                        );
                    }
                }
                _ => {}
            }
        }
    }
}
