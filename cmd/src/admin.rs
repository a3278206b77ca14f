//! The admin socket: how `orlop image …` asks a running daemon.
//!
//! One JSON object a line: the request, then replies until `Done` or `Failed`. The same [`answer`] runs
//! in the command itself when no daemon has the store.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use image::{
    Auth, Event, Fate, Form, Image, LayerProgress, Priority, Progress, PullOptions, Reference, Store,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Most bytes of a request line.
const LONGEST_REQUEST: u64 = 64 << 10;

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    Pull { reference: String, auth: Option<Credentials> },
    Import { archive: PathBuf },
    List,
    Remove { name: String },
    Prune,
    Inspect { name: String },
    Verify { repair: bool },
    Export { names: Vec<String>, file: PathBuf, docker: bool },
    Pin { name: String, pinned: bool },
}

/// Credentials for a registry. The first that is not empty counts: registry token, identity token, user.
#[derive(Serialize, Deserialize)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    fn into_auth(self) -> Auth {
        if !self.registry_token.is_empty() {
            Auth::RegistryToken(self.registry_token)
        } else if !self.identity_token.is_empty() {
            Auth::IdentityToken(self.identity_token)
        } else {
            Auth::Basic { username: self.username, password: self.password }
        }
    }
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Something to tell a person.
    Say(String),
    /// How far a layer is, in bytes; `state` is a word.
    Layer { digest: String, state: String, done: u64, total: u64 },
    /// How far a job of many steps is, and the step that begins now.
    Step { what: String, done: u64, total: u64 },
    /// The end: what came of it.
    Done(Value),
    /// The end: why nothing came of it.
    Failed(String),
}

/// Serves the socket until `shutdown`.
pub async fn serve(listener: UnixListener, store: Store, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            // Cancel-safe: a connection that isn't accepted stays in the queue.
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let store = store.clone();
                    tokio::spawn(async move {
                        if let Err(err) = converse(stream, store).await {
                            warn!(err = %client::describe(err.as_ref()), "answer on the admin socket");
                        }
                    });
                }
                Err(err) => warn!(%err, "accept on the admin socket"),
            },
            () = shutdown.cancelled() => return,
        }
    }
}

async fn converse(stream: UnixStream, store: Store) -> anyhow::Result<()> {
    // The socket's mode lets only root connect; so does this, should the mode ever be changed.
    anyhow::ensure!(stream.peer_cred().context("ask who is connected")?.uid() == 0, "only root may ask");
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(tokio::io::AsyncReadExt::take(read, LONGEST_REQUEST));
    read.read_line(&mut line).await.context("read the request")?;
    let request: Request = serde_json::from_str(&line).context("understand the request")?;
    let (replies, mut queue) = mpsc::unbounded_channel();
    let work = tokio::spawn(async move { answer(&store, request, replies).await });
    while let Some(reply) = queue.recv().await {
        let mut line = serde_json::to_vec(&reply).context("write a reply")?;
        line.push(b'\n');
        if write.write_all(&line).await.is_err() {
            // The person went away: so does the work.
            work.abort();
            return Ok(());
        }
    }
    Ok(())
}

/// Asks the daemon at `socket`; replies arrive at `replies`. `false` if there is no daemon.
pub async fn ask(
    socket: &std::path::Path,
    request: &Request,
    replies: &mpsc::UnboundedSender<Reply>,
) -> anyhow::Result<bool> {
    let Ok(stream) = UnixStream::connect(socket).await else { return Ok(false) };
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(request).context("write the request")?;
    line.push(b'\n');
    write.write_all(&line).await.context("ask the daemon")?;
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await.context("hear from the daemon")? {
        let reply = serde_json::from_str(&line).context("understand the daemon")?;
        if replies.send(reply).is_err() {
            break;
        }
    }
    Ok(true)
}

/// Does what is asked; the last reply is `Done` or `Failed`.
pub async fn answer(store: &Store, request: Request, replies: mpsc::UnboundedSender<Reply>) {
    let last = match act(store, request, &replies).await {
        Ok(value) => Reply::Done(value),
        Err(err) => Reply::Failed(client::describe(err.as_ref())),
    };
    // Whoever asked may be gone; then nobody needs the answer.
    let _gone = replies.send(last);
}

async fn act(
    store: &Store,
    request: Request,
    replies: &mpsc::UnboundedSender<Reply>,
) -> anyhow::Result<Value> {
    match request {
        Request::Pull { reference, auth } => {
            let reference: Reference = reference.parse()?;
            let options = PullOptions {
                auth: auth.map(Credentials::into_auth),
                progress: Some(progress(replies)),
                // No pod waits for it, as far as we know.
                priority: Priority::Prefetch,
            };
            let image = store.pull_with(&reference, options).await?;
            Ok(json!([summary(&image)]))
        }
        Request::Import { archive } => {
            let images = store.import(&archive, Some(progress(replies))).await?;
            Ok(images.iter().map(summary).collect())
        }
        Request::List => Ok(store.list().iter().map(summary).collect()),
        Request::Remove { name } => {
            let removed = store.remove(&name).await?;
            Ok(json!({ "untagged": removed.untagged, "bytes": removed.bytes,
                "deleted": removed.deleted.iter().map(ToString::to_string).collect::<Vec<_>>() }))
        }
        Request::Prune => {
            let removed = store.prune(true).await?;
            Ok(json!({ "untagged": removed.untagged, "bytes": removed.bytes,
                "deleted": removed.deleted.iter().map(ToString::to_string).collect::<Vec<_>>() }))
        }
        Request::Verify { repair } => verify(store, repair, replies).await,
        Request::Export { names, file, docker } => {
            let form = if docker { Form::Docker } else { Form::Oci };
            store.export(&names, &file, form).await?;
            let bytes = std::fs::metadata(&file).map_or(0, |meta| meta.len());
            Ok(json!({ "file": file, "bytes": bytes }))
        }
        Request::Pin { name, pinned } => {
            store.pin(&name, pinned).await?;
            Ok(store.get(&name).iter().map(summary).collect())
        }
        Request::Inspect { name } => {
            let image = store
                .get(&name)
                .with_context(|| format!("there is no image {name:?}; `orlop image list` names all"))?;
            let mut all = summary(&image);
            all["layers"] = image.layers.iter().map(ToString::to_string).collect();
            all["manifest"] =
                serde_json::from_slice(&store.raw_manifest(&image).context("read the manifest")?)
                    .context("understand the manifest")?;
            all["config"] =
                serde_json::from_slice(&store.raw_config(&image.id).context("read the configuration")?)
                    .context("understand the configuration")?;
            Ok(all)
        }
    }
}

/// Verifies everything and, if asked to, repairs it; what is still broken then is in `broken`.
async fn verify(
    store: &Store,
    repair: bool,
    replies: &mpsc::UnboundedSender<Reply>,
) -> anyhow::Result<Value> {
    let report = store.verify(Some(progress(replies))).await.context("read the image store")?;
    let name = |id: &image::Digest| {
        let names = store.get(id.as_str()).map(|image| [image.repo_tags, image.repo_digests].concat());
        names.and_then(|names| names.into_iter().next()).unwrap_or_else(|| id.to_string())
    };
    let problems: Vec<Value> = report
        .problems
        .iter()
        .map(|p| {
            let images: Vec<String> = p.images.iter().map(name).collect();
            json!({ "what": p.what.to_string(), "images": images, "details": p.details })
        })
        .collect();
    let mut all = json!({ "blobs": report.blobs, "layers": report.layers, "problems": problems,
        "repaired": [], "broken": report.problems.len() });
    if repair && !report.problems.is_empty() {
        let repaired = store.repair(&report, |_| None).await?;
        let tell = |fate: &Fate| match fate {
            Fate::Pulled => "pulled again".to_owned(),
            Fate::Dropped { reason } => format!("removed; pulling it again failed: {reason}"),
            Fate::InUse { owners } => {
                format!("left as it is: in use by {}; remove them, then repair again", owners.join(", "))
            }
        };
        all["repaired"] = repaired
            .iter()
            .map(|r| {
                let name = r.names.first().cloned().unwrap_or_else(|| r.id.to_string());
                json!({ "image": name, "fate": tell(&r.fate) })
            })
            .collect();
        all["broken"] = repaired.iter().filter(|r| matches!(r.fate, Fate::InUse { .. })).count().into();
    }
    Ok(all)
}

fn summary(image: &Image) -> Value {
    json!({ "id": image.id.to_string(), "tags": image.repo_tags, "digests": image.repo_digests,
        "size": image.size, "pinned": image.pinned, "artifact": image.artifact, "created": image.created.map(|time| time.to_string()) })
}

/// Turns the store's events into replies.
fn progress(replies: &mpsc::UnboundedSender<Reply>) -> Progress {
    let replies = replies.clone();
    let totals: Arc<std::sync::Mutex<std::collections::HashMap<String, u64>>> = Arc::default();
    Progress::new(move |event| {
        let reply = match event {
            Event::Queued => Reply::Say("waiting for other pulls".to_owned()),
            Event::Verifying { digest, done, total } => {
                let (done, total) = (done as u64, total as u64);
                Reply::Step { what: digest.to_string(), done, total }
            }
            Event::Resolving { what } => Reply::Say(format!("resolving {what}")),
            Event::Resolved { layers, bytes, .. } => {
                let mut totals = totals.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                totals.extend(layers.iter().map(|(digest, size)| (digest.to_string(), *size)));
                Reply::Say(format!("{} layers, {:.1} MiB", layers.len(), bytes as f64 / f64::from(1 << 20)))
            }
            Event::Layer { digest, state } => {
                let digest = digest.to_string();
                let total =
                    totals.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&digest).copied();
                let total = total.unwrap_or(0);
                let (state, done, total) = match state {
                    LayerProgress::Waiting => ("waiting", 0, total),
                    LayerProgress::Exists => ("exists", total, total),
                    LayerProgress::Downloading { done, total } => ("downloading", done, total),
                    LayerProgress::Unpacking => ("unpacking", total, total),
                    LayerProgress::Done => ("done", total, total),
                };
                Reply::Layer { digest, state: state.to_owned(), done, total }
            }
            Event::Committing => Reply::Say("writing to disk".to_owned()),
            Event::Done { id } => Reply::Say(format!("image {id}")),
        };
        // Whoever asked may be gone; the work's end is noticed elsewhere.
        let _gone = replies.send(reply);
    })
}
