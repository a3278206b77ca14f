//! `POST /checkpoint/{namespace}/{pod}/{container}`: a running container's state, written to a file on the node.
//!
//! Guarantees: files are below the kubelet's own directory, which only root can read.

use std::os::unix::fs::DirBuilderExt;

use cri_api::v1 as cri;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::json;

use super::tunnel::{no_pod, running};
use super::{Body, State, json_answer, text};

/// Answers with the path of the new file, in the form of the upstream kubelet.
pub(super) async fn checkpoint(
    state: &State,
    ns: &str,
    pod: &str,
    container: &str,
    query: &[(String, String)],
) -> Response<Body> {
    if state.fleet.find(ns, pod).is_none() {
        return no_pod(pod);
    }
    let container_id = match running(state, ns, pod, container) {
        Ok(id) => id,
        Err(answer) => return *answer,
    };
    let timeout = match timeout(query) {
        Ok(timeout) => timeout,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    let directory = state.shared.config.root_dir.join("checkpoints");
    if let Err(err) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory) {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("make {}: {err}", directory.display()));
    }
    let location = directory.join(file_name(ns, pod, container, Timestamp::now())).display().to_string();
    let asked = cri::CheckpointContainerRequest { container_id, location: location.clone(), timeout };
    match state.shared.cri.checkpoint_container(asked).await {
        Ok(_) => json_answer(&json!({"items": [location]})),
        Err(err) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("checkpointing of {ns}/{pod}/{container} failed ({})", err.message()),
        ),
    }
}

/// The last `timeout` that is given, in seconds; 0 leaves it to the runtime.
fn timeout(query: &[(String, String)]) -> Result<i64, String> {
    let Some((_, value)) = query.iter().rev().find(|(key, _)| key == "timeout") else { return Ok(0) };
    let parsed = value.parse::<i64>().ok().filter(|seconds| *seconds >= 0);
    parsed.ok_or_else(|| format!("failed to parse timeout value {value:?}: a number of seconds is wanted"))
}

fn file_name(ns: &str, pod: &str, container: &str, now: Timestamp) -> String {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ");
    format!("checkpoint-{pod}_{ns}-{container}-{now}.tar")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_upstream_ones() {
        let now = "2026-11-21T15:42:25.7Z".parse().expect("a time");
        assert_eq!(
            file_name("default", "web-0", "app", now),
            "checkpoint-web-0_default-app-2026-11-21T15:42:25Z.tar"
        );
    }

    #[test]
    fn the_last_timeout_counts() {
        let query = |values: &[&str]| -> Vec<(String, String)> {
            values.iter().map(|value| ("timeout".to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(timeout(&query(&[])), Ok(0));
        assert_eq!(timeout(&query(&["3", "20"])), Ok(20));
        assert!(timeout(&query(&["x"])).is_err() && timeout(&query(&["-1"])).is_err());
    }
}
