//! `/containerLogs/{namespace}/{pod}/{container}`.
//!
//! Guarantees: following costs nothing while nothing is written, and ends with the container.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use cri_api::v1 as cri;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Body, State, flag, text, value};
use crate::logs::paths;
use crate::logs::reader::{self, Log, Options, Writer};
use crate::pod::view;

/// How much is read before it is sent.
const CHUNK: usize = 32 << 10;

pub(super) async fn serve(
    state: &State,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &[(String, String)],
) -> Response<Body> {
    let bad = |message: String| text(StatusCode::BAD_REQUEST, message);
    let options = match options(query, state.shared.clock.now()) {
        Ok(options) => options,
        Err(why) => return bad(why),
    };
    let Some((key, object)) = state.fleet.find(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found"));
    };
    if view::member(view::spec(&object), container).is_none() {
        return text(StatusCode::NOT_FOUND, format!("container {container} is not valid for pod {pod}"));
    }
    let (id, count) = match which(&object, container, flag(query, &["previous"])) {
        Ok(found) => found,
        Err(why) => return bad(why),
    };
    let known = status_of(state, &id).await;
    let attempt = known.as_ref().and_then(|s| s.metadata.as_ref()).map_or(count, |m| m.attempt);
    let path = paths::run(&state.shared.config, &key, container, attempt);
    let opened = {
        let (root, path, options) = (state.shared.config.pod_logs_dir.clone(), path.clone(), options.clone());
        tokio::task::spawn_blocking(move || open(&root, &path, &options)).await
    };
    let log = match opened {
        Ok(Ok(log)) => log,
        Ok(Err(err)) if err.kind() == io::ErrorKind::PermissionDenied => {
            return text(StatusCode::FORBIDDEN, format!("unable to read the log: {err}"));
        }
        Ok(Err(err)) => {
            return text(StatusCode::NOT_FOUND, format!("unable to retrieve container logs for {id}: {err}"));
        }
        Err(err) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("read the log: {err}")),
    };
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(pump(state.clone(), id, path, log, options, sender));
    let body = StreamBody::new(ReceiverStream::new(receiver));
    let mut answer = Response::new(BodyExt::boxed(body));
    let plain = http::HeaderValue::from_static("text/plain");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    answer
}

/// Opens the log, which must really be below the logs directory.
fn open(root: &Path, path: &Path, options: &Options) -> io::Result<Log> {
    let dir = path.parent().unwrap_or(path).canonicalize()?;
    if !dir.starts_with(root.canonicalize()?) {
        let message = format!("{} leaves the logs directory: refused", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Log::open(path, options)
}

fn options(query: &[(String, String)], now: jiff::Timestamp) -> Result<Options, String> {
    let number = |name: &str| match value(query, name) {
        None => Ok(None),
        Some(text) => text
            .parse::<u64>()
            .map(Some)
            .map_err(|_| format!("invalid {name} {text:?}: must be a number that is not negative")),
    };
    let since_seconds = number("sinceSeconds")?.map(|s| {
        let ago = jiff::SignedDuration::from_secs(i64::try_from(s).unwrap_or(i64::MAX));
        now.saturating_sub(ago).unwrap_or(jiff::Timestamp::MIN)
    });
    let since_time = match value(query, "sinceTime") {
        None => None,
        Some(text) => {
            Some(text.parse().map_err(|_| format!("invalid sinceTime {text:?}: must be RFC 3339"))?)
        }
    };
    Ok(Options {
        follow: flag(query, &["follow"]),
        tail: number("tailLines")?.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        limit: number("limitBytes")?,
        since: since_time.or(since_seconds),
        timestamps: flag(query, &["timestamps"]),
        only_stderr: match value(query, "stream") {
            Some("Stdout") => Some(false),
            Some("Stderr") => Some(true),
            Some("All") | None => None,
            Some(other) => return Err(format!("invalid stream {other:?}: must be All, Stdout or Stderr")),
        },
    })
}

/// Id and restart count of the run whose log is wanted; the error is what kubectl shows.
fn which(pod: &Pod, container: &str, previous: bool) -> Result<(String, u32), String> {
    let name = pod.metadata.name.as_deref().unwrap_or("");
    let status = pod.status.as_ref();
    let all = status
        .into_iter()
        .flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses).flatten());
    let status: &ContainerStatus = all
        .into_iter()
        .find(|s| s.name == container)
        .ok_or_else(|| format!("container \"{container}\" in pod \"{name}\" is not available"))?;
    let bare =
        |id: &Option<String>| id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id.to_owned());
    let count = u32::try_from(status.restart_count).unwrap_or(0);
    let state = status.state.as_ref();
    let last =
        status.last_state.as_ref().and_then(|s| s.terminated.as_ref()).and_then(|t| bare(&t.container_id));
    if previous {
        let waiting = state.is_some_and(|s| s.waiting.is_some());
        let count = if waiting { count } else { count.saturating_sub(1) };
        return last.map(|id| (id, count)).ok_or_else(|| {
            format!("previous terminated container \"{container}\" in pod \"{name}\" not found")
        });
    }
    let waiting = state.and_then(|s| s.waiting.as_ref());
    match (waiting, bare(&status.container_id), last) {
        (None, Some(id), _) => Ok((id, count)),
        // It waits for a restart: its last run is the one to show.
        (Some(_), _, Some(last)) => Ok((last, count)),
        (Some(waiting), _, None) => {
            let reason = match waiting.reason.as_deref().unwrap_or("") {
                "ErrImagePull" => "image can't be pulled",
                "ImagePullBackOff" => "trying and failing to pull image",
                other => other,
            };
            Err(format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"))
        }
        (None, None, _) => Err(format!("container \"{container}\" in pod \"{name}\" is not available")),
    }
}

async fn status_of(state: &State, id: &str) -> Option<cri::ContainerStatus> {
    let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
    state.shared.cri.container_status(request).await.ok()?.status
}

async fn runs(state: &State, id: &str) -> bool {
    let running = cri::ContainerState::ContainerRunning as i32;
    status_of(state, id).await.is_some_and(|s| s.state == running)
}

/// Sends what is there, then (following) what comes, until the container is through.
async fn pump(
    state: State,
    id: String,
    path: PathBuf,
    mut log: Log,
    options: Options,
    sender: mpsc::Sender<Result<Frame<Bytes>, io::Error>>,
) {
    let follow = options.follow;
    let watch = if follow { reader::watch(&path).ok() } else { None };
    let mut activity = state.fleet.activity();
    let mut writer = Writer::new(options);
    loop {
        activity.borrow_and_update();
        // Asked before reading: what an ended container wrote last is there by then.
        let more = follow && runs(&state, &id).await;
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let (mut chunk, mut end) = (Vec::new(), false);
                while chunk.len() < CHUNK && !writer.full() && !end {
                    match log.next()? {
                        Some(line) => writer.line(&line, &mut chunk),
                        None => end = !log.reopen_if_rotated()?,
                    }
                }
                Ok::<_, io::Error>((log, writer, chunk, end))
            });
            let (l, w, chunk, end) = match read.await {
                Ok(Ok(read)) => read,
                Ok(Err(err)) => return drop(sender.send(Err(err)).await),
                Err(_) => return,
            };
            (log, writer) = (l, w);
            if !chunk.is_empty() && sender.send(Ok(Frame::data(chunk.into()))).await.is_err() {
                return; // The client went away.
            }
            if writer.full() {
                return;
            }
            if end {
                break;
            }
        }
        if !more {
            return;
        }
        let Some(watch) = &watch else { return };
        // Every branch is cancel-safe: the next round looks at everything.
        tokio::select! {
            () = sender.closed() => return,
            woken = watch.wait() => if woken.is_err() { return },
            _ = activity.changed() => {}
            () = tokio::time::sleep(Duration::from_secs(30)) => {} // Should an event be lost.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::step::after;

    #[test]
    fn options_are_read_and_refused() {
        let now = after(jiff::Timestamp::UNIX_EPOCH, Duration::from_secs(100));
        let query = super::super::query("follow=true&tailLines=5&sinceSeconds=60&timestamps=1&stream=Stderr");
        let read = options(&query, now).expect("good options");
        assert_eq!((read.follow, read.tail, read.only_stderr), (true, Some(5), Some(true)));
        assert_eq!(read.since.map(|s| s.as_second()), Some(40));
        for bad in ["tailLines=x", "limitBytes=-1", "sinceTime=now", "stream=both"] {
            assert!(options(&super::super::query(bad), now).is_err(), "{bad}");
        }
    }
}
