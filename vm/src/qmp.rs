//! Commands to a running QEMU over its control socket (QEMU Machine Protocol).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Sends one command and returns its answer. Each command has a connection of its own.
///
/// # Errors
/// QEMU is gone, says no, or does not answer within ten seconds.
pub async fn command(socket: &Path, name: &str, arguments: Value) -> anyhow::Result<Value> {
    let talk = async {
        let stream = UnixStream::connect(socket).await.context("connect to QEMU's control socket")?;
        let mut stream = BufReader::new(stream);
        answer(&mut stream, "QMP").await?;
        send(&mut stream, &json!({ "execute": "qmp_capabilities" })).await?;
        answer(&mut stream, "return").await?;
        send(&mut stream, &json!({ "execute": name, "arguments": arguments })).await?;
        answer(&mut stream, "return").await
    };
    let talked = tokio::time::timeout(Duration::from_secs(10), talk).await;
    talked.unwrap_or_else(|_| bail!("no answer within 10 s")).with_context(|| format!("QMP {name}"))
}

async fn send(stream: &mut BufReader<UnixStream>, message: &Value) -> anyhow::Result<()> {
    stream.get_mut().write_all(format!("{message}\n").as_bytes()).await.context("write to QEMU")
}

/// The value of the next message that has `key`; events on the way are dropped.
async fn answer(stream: &mut BufReader<UnixStream>, key: &str) -> anyhow::Result<Value> {
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.context("read from QEMU")? == 0 {
            bail!("QEMU closed the connection");
        }
        let mut message: Value = serde_json::from_str(&line).context("read QEMU's JSON")?;
        if let Some(error) = message.get("error") {
            bail!("QEMU says: {}", error["desc"].as_str().unwrap_or("no"));
        }
        if let Some(found) = message.get_mut(key) {
            return Ok(found.take());
        }
    }
}
