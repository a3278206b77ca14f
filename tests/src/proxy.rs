//! A registry's bad days: a proxy in front of it that asks for a password, or cuts connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::Context;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Node;

/// What is wrong with the way to the registry.
#[derive(Debug, Clone, Default)]
pub struct Trouble {
    /// Answer 401 unless this (base64 of `user:password`) comes along.
    pub basic: Option<String>,
    /// Cut the connection after so many bytes of an answer …
    pub cut_after: Option<u64>,
    /// … so many times.
    pub cuts: u32,
}

/// The proxy; it ends with the test's process, or when dropped.
#[derive(Debug)]
pub struct Proxy {
    /// `127.0.0.1:<port>`.
    pub address: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    trouble: Trouble,
    upstream: String,
    cut: AtomicU32,
    ranges: AtomicU32,
    ended: AtomicBool,
}

impl Proxy {
    /// Listens on a port of the node's network namespace, and passes on to `upstream` there.
    ///
    /// # Errors
    /// The port is taken, or the namespace can't be entered.
    pub fn start(node: &Node, port: u16, upstream: &str, trouble: Trouble) -> anyhow::Result<Proxy> {
        let address = format!("127.0.0.1:{port}");
        let shared = Arc::new(Shared {
            trouble,
            upstream: upstream.to_owned(),
            cut: AtomicU32::new(0),
            ranges: AtomicU32::new(0),
            ended: AtomicBool::new(false),
        });
        let netns =
            std::fs::File::open(format!("/run/netns/{}", node.netns)).context("open the namespace")?;
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (listen, of_thread) = (address.clone(), Arc::clone(&shared));
        // A thread of its own: it and those that it starts stay in the namespace.
        std::thread::spawn(move || {
            use std::os::fd::AsFd;
            let bound = move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(std::io::Error::from)
                .and_then(|()| TcpListener::bind(&listen));
            let listener = match bound {
                Ok(listener) => listener,
                Err(err) => return ready.send(Err(err)).unwrap_or_default(),
            };
            ready.send(Ok(())).unwrap_or_default();
            for client in listener.incoming().map_while(Result::ok) {
                if of_thread.ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&of_thread);
                std::thread::spawn(move || serve(&shared, client).unwrap_or_default());
            }
        });
        is_ready.recv().context("the proxy's thread ended")?.context("listen")?;
        Ok(Proxy { address, shared })
    }

    /// How many connections were cut.
    pub fn cuts(&self) -> u32 {
        self.shared.cut.load(Ordering::Relaxed)
    }

    /// How many requests asked for a part of a blob.
    pub fn ranges(&self) -> u32 {
        self.shared.ranges.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
    }
}

/// One request for each connection: the answer says that the connection closes.
fn serve(shared: &Shared, mut client: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let header = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    if let Some(basic) = &shared.trouble.basic
        && header("authorization").as_deref() != Some(&format!("Basic {basic}"))
    {
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        return client.write_all(
            format!(
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"tests\"\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        );
    }
    if header("range").is_some() {
        shared.ranges.fetch_add(1, Ordering::Relaxed);
    }
    let mut upstream = TcpStream::connect(&shared.upstream)?;
    let kept: Vec<&str> = text
        .trim_end()
        .lines()
        .filter(|line| !line.to_ascii_lowercase().starts_with("connection:"))
        .collect();
    upstream.write_all(format!("{}\r\nConnection: close\r\n\r\n", kept.join("\r\n")).as_bytes())?;
    let mut buffer = [0; 8192];
    let mut passed = 0;
    loop {
        let n = upstream.read(&mut buffer)?;
        if n == 0 {
            return client.shutdown(Shutdown::Both);
        }
        client.write_all(&buffer[..n])?;
        passed += n as u64;
        if shared.trouble.cut_after.is_some_and(|limit| passed > limit)
            && shared.cut.load(Ordering::Relaxed) < shared.trouble.cuts
        {
            shared.cut.fetch_add(1, Ordering::Relaxed);
            return client.shutdown(Shutdown::Both);
        }
    }
}
