//! Quality-of-service class and the numbers that follow from requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;

/// A container's requests or limits.
type List = BTreeMap<String, Quantity>;

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn class(spec: &PodSpec) -> &'static str {
    if let Some(own) = spec.resources.as_ref().filter(|r| !empty(r)) {
        return of_all(std::iter::once(own));
    }
    let none = ResourceRequirements::default();
    let all: Vec<ResourceRequirements> = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|c| c.resources.clone().unwrap_or_else(|| none.clone()))
        .collect();
    of_all(all.iter())
}

fn of_all<'a>(all: impl Iterator<Item = &'a ResourceRequirements>) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for resources in all {
        for kind in ["cpu", "memory"] {
            let limit = get(resources.limits.as_ref(), kind);
            let request = get(resources.requests.as_ref(), kind).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn empty(r: &ResourceRequirements) -> bool {
    ["cpu", "memory"]
        .iter()
        .all(|kind| get(r.limits.as_ref(), kind).is_none() && get(r.requests.as_ref(), kind).is_none())
}

/// A positive amount in thousandths.
fn get(list: Option<&List>, kind: &str) -> Option<i128> {
    let text = &list?.get(kind)?.0;
    quantity::milli(text).filter(|amount| *amount > 0)
}

/// What a pod's runtime class takes of one resource, in thousandths.
pub fn overhead(spec: &PodSpec, kind: &str) -> i128 {
    get(spec.overhead.as_ref(), kind).unwrap_or(0)
}

/// What a pod as a whole names of one resource, in thousandths, if it does; a limit is a request where there is none.
pub fn pod_level(spec: &PodSpec, kind: &str, limits: bool) -> Option<i128> {
    let own = spec.resources.as_ref()?;
    let limit = || get(own.limits.as_ref(), kind);
    if limits { limit() } else { get(own.requests.as_ref(), kind).or_else(limit) }
}

/// What a pod asks for of one resource, in thousandths: what it names as a whole, else the sum over its containers.
pub fn pod_total(spec: &PodSpec, kind: &str, limits: bool) -> i128 {
    pod_level(spec, kind, limits).unwrap_or_else(|| sum(spec, kind, limits))
}

/// The sum over a pod's containers, in thousandths, or the biggest init container if that is more.
pub fn sum(spec: &PodSpec, kind: &str, limits: bool) -> i128 {
    let of = |c: &Container| {
        let r = c.resources.as_ref();
        let limit = r.and_then(|r| get(r.limits.as_ref(), kind));
        let request = r.and_then(|r| get(r.requests.as_ref(), kind));
        if limits { limit } else { request.or(limit) }.unwrap_or(0)
    };
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let inits = || spec.init_containers.iter().flatten();
    let side: i128 = inits().filter(sidecar).map(of).sum();
    let apps: i128 = spec.containers.iter().map(of).sum();
    let biggest = inits().filter(|c| !sidecar(c)).map(of).max().unwrap_or(0);
    (apps + side).max(biggest + side)
}
