//! `orlop image …`: asks the daemon if one runs, else opens the store itself.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::admin::{self, Credentials, Reply, Request};
use crate::config::NodeConfig;
use crate::flags::ImageCommand;
use crate::node::open_images;

/// Runs one command and prints what came of it.
pub async fn run(config: NodeConfig, command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Pull { reference, creds } => {
            let auth = match creds {
                Some(creds) => Some(user(&creds)?),
                None => docker_credentials(&reference).await,
            };
            print_images(&ask(&config, Request::Pull { reference, auth }).await?);
        }
        ImageCommand::Import { archive } => {
            // The daemon has another working directory.
            let archive = archive.canonicalize().with_context(|| format!("find {}", archive.display()))?;
            let what = format!("import {}", archive.display());
            print_images(&ask(&config, Request::Import { archive }).await.context(what)?);
        }
        ImageCommand::List => print_table(&ask(&config, Request::List).await?),
        ImageCommand::Remove { names } => {
            for name in names {
                print_removed(&ask(&config, Request::Remove { name }).await?);
            }
        }
        ImageCommand::Prune => print_removed(&ask(&config, Request::Prune).await?),
        ImageCommand::Verify { repair } => {
            let report = ask(&config, Request::Verify { repair }).await?;
            print_report(&report);
            match report["broken"].as_u64() {
                Some(0) => {}
                _ if repair => bail!("not all could be repaired"),
                _ => bail!(
                    "the image store is damaged; `orlop image verify --repair` pulls or removes what is broken"
                ),
            }
        }
        ImageCommand::Export { names_and_file } => export(&config, names_and_file, false).await?,
        ImageCommand::Save { names_and_file } => export(&config, names_and_file, true).await?,
        ImageCommand::Pin { name } => {
            print_images(&ask(&config, Request::Pin { name, pinned: true }).await?);
        }
        ImageCommand::Unpin { name } => {
            print_images(&ask(&config, Request::Pin { name, pinned: false }).await?);
        }
        ImageCommand::Inspect { name } => {
            let found = ask(&config, Request::Inspect { name }).await?;
            println!("{}", serde_json::to_string_pretty(&found).context("print the image")?);
        }
    }
    Ok(())
}

fn user(creds: &str) -> anyhow::Result<Credentials> {
    let (username, password) = creds.split_once(':').context("credentials are USER:PASSWORD")?;
    let (username, password) = (username.to_owned(), password.to_owned());
    Ok(Credentials { username, password, identity_token: String::new(), registry_token: String::new() })
}

/// What docker's configuration of whoever asks has for an image, its credential helpers included.
async fn docker_credentials(reference: &str) -> Option<Credentials> {
    let docker = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    let file = docker.or_else(home)?.join("config.json");
    let found = kubelet::docker_credentials(&[file], reference).await.into_iter().next()?;
    Some(Credentials {
        username: found.username,
        password: found.password,
        identity_token: found.identity_token,
        registry_token: found.registry_token,
    })
}

/// The last of the words is the archive.
async fn export(config: &NodeConfig, mut names: Vec<String>, docker: bool) -> anyhow::Result<()> {
    let file = names.pop().context("no archive is named")?;
    // The daemon has another working directory.
    let file = std::path::absolute(&file).with_context(|| format!("find {file}"))?;
    let done = ask(config, Request::Export { names, file, docker }).await?;
    println!(
        "{}  {:.1} MiB",
        text(&done["file"]),
        done["bytes"].as_f64().unwrap_or(0.0) / f64::from(1 << 20)
    );
    Ok(())
}

fn print_report(report: &Value) {
    for problem in report["problems"].as_array().into_iter().flatten() {
        let list =
            |key: &str| -> Vec<&str> { problem[key].as_array().into_iter().flatten().map(text).collect() };
        println!("broken   {}", text(&problem["what"]));
        for detail in list("details") {
            println!("         {detail}");
        }
        for image in list("images") {
            println!("         needed by {image}");
        }
    }
    for image in report["repaired"].as_array().into_iter().flatten() {
        println!("{}: {}", text(&image["image"]), text(&image["fate"]));
    }
    println!("{} blobs and {} layers verified", report["blobs"], report["layers"]);
}

async fn ask(config: &NodeConfig, request: Request) -> anyhow::Result<Value> {
    let (replies, queue) = mpsc::unbounded_channel();
    let shown = tokio::spawn(show(queue));
    if !admin::ask(&config.paths.admin_socket(), &request, &replies).await? {
        let store = open_images(config)?;
        admin::answer(&store, request, replies).await;
    } else {
        drop(replies);
    }
    match shown.await.context("show progress")? {
        Some(Reply::Done(value)) => Ok(value),
        Some(Reply::Failed(why)) => bail!("{why}"),
        _ => bail!("the daemon ended in the middle: its log says why"),
    }
}

/// Shows progress on a terminal, one bar a layer; returns the last reply.
async fn show(mut queue: mpsc::UnboundedReceiver<Reply>) -> Option<Reply> {
    let terminal = std::io::stderr().is_terminal();
    let bars = MultiProgress::new();
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {bytes:>10}/{total_bytes:10} {msg:11}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let mut layers: HashMap<String, ProgressBar> = HashMap::new();
    while let Some(reply) = queue.recv().await {
        match reply {
            Reply::Say(text) if terminal => {
                // A line that can't be shown is no reason to stop.
                let _shown = bars.println(text);
            }
            Reply::Layer { digest, state, done, total } if terminal => {
                let bar = layers.entry(digest.clone()).or_insert_with(|| {
                    let short = digest
                        .split(':')
                        .next_back()
                        .unwrap_or_default()
                        .chars()
                        .take(12)
                        .collect::<String>();
                    bars.add(ProgressBar::new(total).with_style(style.clone()).with_prefix(short))
                });
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(state);
            }
            Reply::Step { what, done, total } if terminal => {
                let bar = layers.entry(String::new()).or_insert_with(|| {
                    let style = ProgressStyle::with_template("{wide_bar} {pos:>5}/{len:5} {msg:12}");
                    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
                    bars.add(ProgressBar::new(total).with_style(style))
                });
                bar.set_position(done);
                bar.set_message(
                    what.split(':').next_back().unwrap_or_default().chars().take(12).collect::<String>(),
                );
            }
            Reply::Say(_) | Reply::Layer { .. } | Reply::Step { .. } => {}
            last => {
                layers.values().for_each(ProgressBar::abandon);
                return Some(last);
            }
        }
    }
    None
}

fn print_images(images: &Value) {
    for image in images.as_array().into_iter().flatten() {
        let names = names(image);
        println!(
            "{}  {}",
            if names.is_empty() { "<none>".to_owned() } else { names.join(", ") },
            text(&image["id"])
        );
    }
}

fn print_removed(removed: &Value) {
    for name in removed["untagged"].as_array().into_iter().flatten() {
        println!("untagged {}", text(name));
    }
    for id in removed["deleted"].as_array().into_iter().flatten() {
        println!("deleted  {}", text(id));
    }
    println!("{:.1} MiB freed", removed["bytes"].as_f64().unwrap_or(0.0) / f64::from(1 << 20));
}

fn print_table(images: &Value) {
    println!("{:<50} {:<15} {:>10}", "IMAGE", "ID", "SIZE");
    for image in images.as_array().into_iter().flatten() {
        let id: String = text(&image["id"]).trim_start_matches("sha256:").chars().take(13).collect();
        let size = format!("{:.1} MiB", image["size"].as_f64().unwrap_or(0.0) / f64::from(1 << 20));
        let mut names = names(image);
        if names.is_empty() {
            names.push("<none>".to_owned());
        }
        for name in names {
            println!("{name:<50} {id:<15} {size:>10}");
        }
    }
}

/// Tags, or digests where there is no tag.
fn names(image: &Value) -> Vec<String> {
    let list = |key: &str| -> Vec<String> {
        image[key].as_array().into_iter().flatten().map(|name| text(name).to_owned()).collect()
    };
    let tags = list("tags");
    if tags.is_empty() { list("digests") } else { tags }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
