//! The files of configMap, secret, downwardAPI and projected volumes.
//!
//! Guarantees: pure; every path is relative and stays inside the volume.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume, VolumeProjection,
};

use crate::container::env::{Lookup, secret_data};
use crate::container::fields::{self, NodeFacts};
use crate::pod::view;

/// Files by path below the volume.
pub type Payload = BTreeMap<String, File>;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner, if not root.
    pub uid: Option<u32>,
}

/// A service-account token that a volume wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenWish {
    /// Service account of the pod.
    pub account: String,
    /// Audience; empty for the apiserver's.
    pub audience: String,
    /// Wanted lifetime in seconds.
    pub seconds: i64,
}

/// What files are made from.
pub struct Inputs<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// ConfigMaps and Secrets of its namespace.
    pub objects: &'a dyn Lookup,
    /// What the node knows.
    pub node: &'a NodeFacts,
    /// Tokens that were had beforehand.
    pub tokens: &'a BTreeMap<TokenWish, String>,
}

/// Whether the volume consists of such files.
pub fn is_payload(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// The tokens that a volume wants.
pub fn wishes(pod: &Pod, volume: &Volume) -> Vec<TokenWish> {
    let account = view::spec(pod).service_account_name.clone().unwrap_or_else(|| "default".into());
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    sources
        .filter_map(|s| s.service_account_token.as_ref())
        .map(|t| TokenWish {
            account: account.clone(),
            audience: t.audience.clone().unwrap_or_default(),
            seconds: t.expiration_seconds.unwrap_or(3600),
        })
        .collect()
}

/// Makes the files of a volume. The error is what stands after the colon of `FailedMount`.
pub fn make(inputs: &Inputs<'_>, volume: &Volume) -> Result<Payload, String> {
    let mut files = Payload::new();
    if let Some(source) = &volume.config_map {
        let mode = mode(source.default_mode);
        let optional = source.optional == Some(true);
        config_map(inputs, &source.name, source.items.as_deref(), optional, mode, &mut files)?;
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or("");
        let mode = mode(source.default_mode);
        secret(inputs, name, source.items.as_deref(), source.optional == Some(true), mode, &mut files)?;
    }
    if let Some(source) = &volume.downward_api {
        downward(inputs, source.items.as_deref(), mode(source.default_mode), &mut files)?;
    }
    if let Some(source) = &volume.projected {
        let mode = mode(source.default_mode);
        for part in source.sources.iter().flatten() {
            projection(inputs, part, mode, &mut files)?;
        }
    }
    Ok(files)
}

fn mode(given: Option<i32>) -> u32 {
    given.and_then(|m| u32::try_from(m).ok()).unwrap_or(0o644) & 0o777
}

fn projection(
    inputs: &Inputs<'_>,
    part: &VolumeProjection,
    mode: u32,
    files: &mut Payload,
) -> Result<(), String> {
    if let Some(p) = &part.config_map {
        config_map(inputs, &p.name, p.items.as_deref(), p.optional == Some(true), mode, files)?;
    }
    if let Some(p) = &part.secret {
        secret(inputs, &p.name, p.items.as_deref(), p.optional == Some(true), mode, files)?;
    }
    if let Some(p) = &part.downward_api {
        downward(inputs, p.items.as_deref(), mode, files)?;
    }
    if let Some(p) = &part.service_account_token {
        let account = view::spec(inputs.pod).service_account_name.clone().unwrap_or_else(|| "default".into());
        let wish = TokenWish {
            account,
            audience: p.audience.clone().unwrap_or_default(),
            seconds: p.expiration_seconds.unwrap_or(3600),
        };
        let token = inputs.tokens.get(&wish).ok_or_else(|| {
            format!("failed to fetch token: no token for service account \"{}\"", wish.account)
        })?;
        let (mode, uid) = token_owner(inputs.pod, mode);
        add(files, &p.path, token.clone().into_bytes(), mode, uid)?;
    }
    if part.cluster_trust_bundle.is_some() || part.pod_certificate.is_some() {
        return Err("projected clusterTrustBundle and podCertificate are not supported".into());
    }
    Ok(())
}

/// A token is for its readers only, where it is known who they are: one user, or the fsGroup.
fn token_owner(pod: &Pod, mode: u32) -> (u32, Option<u32>) {
    let spec = view::spec(pod);
    let of_pod = spec.security_context.as_ref();
    if of_pod.and_then(|s| s.fs_group).is_some() {
        return (0o600, None);
    }
    let user = |own: Option<i64>| own.or(of_pod.and_then(|s| s.run_as_user));
    let mut users =
        view::members(spec).map(|m| user(m.spec.security_context.as_ref().and_then(|s| s.run_as_user)));
    let first = users.next().flatten();
    match first.and_then(|uid| u32::try_from(uid).ok()) {
        Some(uid) if users.all(|u| u == first) => (0o600, Some(uid)),
        _ => (mode, None),
    }
}

fn config_map(
    inputs: &Inputs<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    files: &mut Payload,
) -> Result<(), String> {
    match inputs.objects.config_map(name) {
        Some(map) => pick(&config_map_data(&map), items, optional, mode, files),
        None if optional => Ok(()),
        None => Err(format!("configmap \"{name}\" not found")),
    }
}

fn secret(
    inputs: &Inputs<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    files: &mut Payload,
) -> Result<(), String> {
    match inputs.objects.secret(name) {
        Some(secret) => pick(&secret_bytes(&secret), items, optional, mode, files),
        None if optional => Ok(()),
        None => Err(format!("secret \"{name}\" not found")),
    }
}

fn secret_bytes(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret_data(secret)
}

fn config_map_data(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

fn pick(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    files: &mut Payload,
) -> Result<(), String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        for (key, value) in data {
            add(files, key, value.clone(), mode, None)?;
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                let mode = item.mode.and_then(|m| u32::try_from(m).ok()).map_or(mode, |m| m & 0o777);
                add(files, &item.path, value.clone(), mode, None)?;
            }
            None if optional => {}
            None => return Err(format!("references non-existent config key: {}", item.key)),
        }
    }
    Ok(())
}

fn downward(
    inputs: &Inputs<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: u32,
    files: &mut Payload,
) -> Result<(), String> {
    for item in items.unwrap_or_default() {
        let value = if let Some(field) = &item.field_ref {
            fields::field(inputs.pod, inputs.node, &field.field_path)?
        } else if let Some(resource) = &item.resource_field_ref {
            let name = resource.container_name.as_deref().unwrap_or("");
            let member = view::member(view::spec(inputs.pod), name)
                .ok_or_else(|| format!("container {name} not found"))?;
            fields::resource(member.spec, inputs.node, resource)?
        } else {
            String::new()
        };
        let mode = item.mode.and_then(|m| u32::try_from(m).ok()).map_or(mode, |m| m & 0o777);
        add(files, &item.path, value.into_bytes(), mode, None)?;
    }
    Ok(())
}

fn add(files: &mut Payload, path: &str, data: Vec<u8>, mode: u32, uid: Option<u32>) -> Result<(), String> {
    let fine = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if path.starts_with("..") || !path.split('/').all(fine) {
        return Err(format!("invalid path {path:?}: must be relative, without empty, . or .. parts"));
    }
    files.insert(path.into(), File { data, mode, uid });
    Ok(())
}
