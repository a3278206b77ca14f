//! Paths that are no resources: discovery, OpenAPI, version, health, metrics.
//!
//! Guarantees: OpenAPI documents are made when first asked for, kept compressed, and carry an ETag.

use std::{collections::HashMap, io::Read, io::Write, sync::Arc};

use api::{discovery, openapi, status::Failure};
use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, header};
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest, Sha512};

use crate::{
    app::App,
    metrics, negotiate,
    negotiate::{Format, Shape},
    read,
    request::Query,
    respond::{self, Answer},
};

/// OpenAPI documents that were asked for.
#[derive(Default)]
pub(crate) struct Documents(Mutex<HashMap<String, Arc<Document>>>);

struct Document {
    gzip: Bytes,
    etag: String,
}

impl Documents {
    async fn get(&self, path: &str) -> Option<Arc<Document>> {
        if let Some(known) = self.0.lock().get(path) {
            return Some(known.clone());
        }
        let owned = path.to_owned();
        // Some of them are megabytes: not on a thread that serves requests.
        let made = tokio::task::spawn_blocking(move || make(&owned)).await.ok()??;
        Some(self.0.lock().entry(path.to_owned()).or_insert(Arc::new(made)).clone())
    }
}

fn make(path: &str) -> Option<Document> {
    let plain = match path {
        "/openapi/v2" => openapi::v2(),
        "/openapi/v3" => openapi::index(),
        other => openapi::v3(other.strip_prefix("/openapi/v3/")?)?,
    };
    let etag = Sha512::digest(&plain).iter().take(32).map(|b| format!("{b:02X}")).collect();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&plain).expect("memory takes all");
    Some(Document { gzip: Bytes::from(encoder.finish().expect("memory takes all")), etag })
}

/// Answers a GET.
pub(crate) async fn serve(
    app: &Arc<App>,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Answer, Failure> {
    let trimmed = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    let gzip = respond::takes_gzip(headers);
    let elements: Vec<&str> = trimmed.split('/').filter(|e| !e.is_empty()).collect();
    match elements.as_slice() {
        [] => Ok(respond::json(200, &json!({"paths": paths()}))),
        ["version"] => Ok(respond::json(200, &version())),
        ["metrics"] => {
            Ok(respond::bytes(200, "text/plain; version=0.0.4; charset=utf-8", metrics::render(app)))
        }
        [check @ ("healthz" | "livez" | "readyz"), rest @ ..] => health(app, check, rest, query),
        ["openapi", ..] => open_api(app, trimmed, query, headers, gzip).await,
        ["api"] | ["apis"] => {
            let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
            let accepted = negotiate::accept(accept)?;
            let aggregated = accepted.shape == Shape::Discovery && !accepted.beta;
            let value = match (elements[0], aggregated) {
                ("api", true) => discovery::aggregated_core(),
                ("api", false) => discovery::api_versions(&app.config.advertise.to_string()),
                (_, true) => discovery::aggregated_groups(),
                (_, false) => discovery::api_groups(),
            };
            let mut answer = respond::object(200, read::encode(&value), Format::Json, gzip);
            if aggregated {
                let kind = HeaderValue::from_static(discovery::AGGREGATED);
                answer.headers_mut().insert(header::CONTENT_TYPE, kind);
            }
            answer.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
            Ok(answer)
        }
        ["apis", group] => found(discovery::api_group(group), gzip),
        ["api", version] => found(discovery::api_resources("", version), gzip),
        ["apis", group, version] => found(discovery::api_resources(group, version), gzip),
        _ => Err(Failure::no_such_path()),
    }
}

fn found(value: Option<serde_json::Value>, gzip: bool) -> Result<Answer, Failure> {
    let value = value.ok_or_else(Failure::no_such_path)?;
    Ok(respond::object(200, read::encode(&value), Format::Json, gzip))
}

/// What version this is, in `version.Info`'s shape.
fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": concat!("v1.36.0+orlop.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none (rust)",
        "compiler": "rustc", "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

fn paths() -> Vec<String> {
    let mut out = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, version) in api::registry::group_versions().into_iter().filter(|(g, _)| !g.is_empty()) {
        out.push(format!("/apis/{group}"));
        out.push(format!("/apis/{group}/{version}"));
    }
    let others = ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];
    out.extend(others.map(str::to_owned));
    out
}

/// Health: `ping`, the store, and, for readiness, whether we are stopping.
fn health(app: &App, check: &str, rest: &[&str], query: &Query) -> Result<Answer, Failure> {
    let mut checks = vec![("ping", true), ("etcd", true)];
    if check == "readyz" {
        checks.push(("informer-sync", app.cache.revision() > 0));
        checks.push(("shutdown", !app.stop.is_cancelled()));
    }
    match rest {
        [] => {}
        [one] => checks.retain(|(name, _)| name == one),
        _ => return Err(Failure::no_such_path()),
    }
    if checks.is_empty() {
        return Err(Failure::no_such_path());
    }
    let well = checks.iter().all(|(_, ok)| *ok);
    let mut text = String::new();
    for (name, ok) in &checks {
        text.push_str(&if *ok { format!("[+]{name} ok\n") } else { format!("[-]{name} failed\n") });
    }
    text.push_str(&format!("{check} check {}\n", if well { "passed" } else { "failed" }));
    let code = if well { 200 } else { 500 };
    Ok(respond::text(code, if well && !query.flag("verbose") { "ok".to_owned() } else { text }))
}

async fn open_api(
    app: &Arc<App>,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
    gzip: bool,
) -> Result<Answer, Failure> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let takes_json = accept.is_empty() || ["json", "*/*", "application/*"].iter().any(|t| accept.contains(t));
    if !takes_json {
        return Err(Failure::not_acceptable(&["application/json"]));
    }
    let document = app.documents.get(path).await.ok_or_else(Failure::no_such_path)?;
    let etag = format!("\"{}\"", document.etag);
    let same =
        headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains(&etag));
    let mut answer = if same {
        respond::bytes(304, "application/json", Bytes::new())
    } else if gzip {
        let mut answer = respond::bytes(200, "application/json", document.gzip.clone());
        answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        answer
    } else {
        let mut plain = Vec::new();
        GzDecoder::new(&document.gzip[..]).read_to_end(&mut plain).expect("we compressed it");
        respond::bytes(200, "application/json", plain)
    };
    let headers = answer.headers_mut();
    headers.insert(header::ETAG, HeaderValue::from_str(&etag).expect("hex digits are a header value"));
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    // Whoever names a hash may keep the answer: another document has another hash.
    let cache = if query.get("hash").is_empty() {
        "no-cache, private"
    } else {
        "public, max-age=31536000, immutable"
    };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    Ok(answer)
}
