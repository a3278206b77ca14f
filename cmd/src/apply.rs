//! `orlop apply`: creates the objects of a manifest, or changes them to match it.
//!
//! For machines without kubectl. It merges what the manifest says into what is there (JSON merge
//! patch); it doesn't remove what an earlier manifest said, as `kubectl apply` does.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, ResourceExt};
use serde::Deserialize;

use crate::flags::ApplyFlags;
use crate::paths::Paths;

/// Applies every document of every file, in order; stops at the first that fails.
pub async fn run(paths: &Paths, flags: &ApplyFlags) -> anyhow::Result<()> {
    let kubeconfig = flags.kubeconfig.clone().unwrap_or_else(|| paths.admin_kubeconfig());
    let client = client::connect(&kubeconfig).await?;
    for file in &flags.files {
        for object in documents(&text(file)?).with_context(|| format!("understand {}", file.display()))? {
            let (what, done) = apply(&client, object, &flags.namespace).await?;
            println!("{what} {done}");
        }
    }
    Ok(())
}

fn text(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

/// The objects of a file with several YAML documents; empty documents are passed over.
fn documents(text: &str) -> anyhow::Result<Vec<DynamicObject>> {
    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = serde_json::Value::deserialize(document)?;
        if !value.is_null() {
            let object: DynamicObject = serde_json::from_value(value)?;
            if object.types.is_none() {
                bail!("a document lacks apiVersion and kind");
            }
            objects.push(object);
        }
    }
    Ok(objects)
}

async fn apply(
    client: &Client,
    object: DynamicObject,
    namespace: &str,
) -> anyhow::Result<(String, &'static str)> {
    let types = object.types.clone().context("a document lacks apiVersion and kind")?;
    let name = object.name_any();
    let what = format!("{}/{name}", types.kind.to_lowercase());
    let gvk =
        GroupVersionKind::try_from(&types).with_context(|| format!("understand apiVersion of {what}"))?;
    let (resource, capabilities) =
        pinned_kind(client, &gvk).await.with_context(|| format!("find the kind of {what} in the cluster"))?;
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            let namespace = object.namespace().unwrap_or_else(|| namespace.to_owned());
            Api::namespaced_with(client.clone(), &namespace, &resource)
        }
    };
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok((what, "created")),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
            let patch = Patch::Merge(&object);
            api.patch(&name, &PatchParams::default(), &patch)
                .await
                .with_context(|| format!("change {what}"))?;
            Ok((what, "configured"))
        }
        Err(err) => Err(err).with_context(|| format!("create {what}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_read_one_by_one() {
        let text = "---\napiVersion: v1\nkind: A\n---\n---\napiVersion: v1\nkind: B\n";
        let kinds: Vec<_> = documents(text).unwrap().into_iter().map(|o| o.types.unwrap().kind).collect();
        assert_eq!(kinds, ["A", "B"]);
        assert!(documents("metadata: {name: x}").unwrap_err().to_string().contains("apiVersion"));
    }
}
