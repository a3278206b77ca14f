//! A WebSocket client that does what no honest client does.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::World;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to the streaming server.
pub struct Socket(TcpStream);

impl Socket {
    /// Connects to a URL of Exec, Attach or PortForward in the node's network, and upgrades.
    pub async fn open(world: &World, url: &str) -> anyhow::Result<Socket> {
        let (address, path) =
            url.trim_start_matches("http://").split_once('/').context("a URL with a path")?;
        let address: SocketAddr = address.parse()?;
        let netns = PathBuf::from("/run/netns").join(&world.node.netns);
        // The thread ends with its errand, so that nothing else is left in that namespace.
        let connected = std::thread::spawn(move || -> anyhow::Result<_> {
            let netns = std::fs::File::open(netns)?;
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), kind)?;
            let socket = std::net::TcpStream::connect_timeout(&address, PATIENCE)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let connected = tokio::task::spawn_blocking(move || connected.join()).await?;
        let connected = connected.map_err(|_| anyhow::anyhow!("the connecting thread panicked"))??;
        let mut socket = TcpStream::from_std(connected)?;
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        let reading = async {
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await?);
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, reading).await.context("no answer to the upgrade")??;
        let head = String::from_utf8_lossy(&head);
        ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
        Ok(Socket(socket))
    }

    /// Sends the same message on a channel so many times, in one piece.
    pub async fn send(&mut self, channel: u8, data: &[u8], times: usize) -> anyhow::Result<()> {
        ensure!(data.len() < 125, "a short message is wanted");
        let length = u8::try_from(data.len() + 1)?;
        // A whole binary message, masked with zeros.
        let one = [&[0x82, 0x80 | length, 0, 0, 0, 0, channel], data].concat();
        self.0.write_all(&one.repeat(times)).await.context("send")
    }

    /// Reads until the server says goodbye, or closes or resets the connection.
    pub async fn drain(mut self) -> anyhow::Result<()> {
        // A close frame with the code of a normal end.
        const GOODBYE: [u8; 4] = [0x88, 2, 3, 0xe8];
        let mut all = Vec::new();
        let reading = async {
            while let Ok(1..) = self.0.read_buf(&mut all).await {
                if all.windows(GOODBYE.len()).any(|bytes| bytes == GOODBYE) {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.context("the server does not close")
    }
}
