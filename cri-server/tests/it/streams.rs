//! Exec, attach and port-forward through URLs, over WebSocket.

use std::collections::BTreeMap;
use std::time::Duration;

use cri_api::Cri;
use cri_api::v1::*;
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::world::{Calls, container, eventually, in_world, pod};

type Socket = WebSocketStream<TcpStream>;

async fn open(url: &str, protocol: &str) -> Socket {
    let mut request = url.replace("http:", "ws:").into_client_request().expect("a request");
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().expect("a header"));
    let address = request.uri().authority().expect("an address").to_string();
    let socket = TcpStream::connect(address).await.expect("connects");
    tokio_tungstenite::client_async(request, socket).await.expect("upgrades").0
}

async fn send(socket: &mut Socket, channel: u8, data: &[u8]) {
    socket.send(Message::binary([&[channel], data].concat())).await.expect("sends");
}

/// Reads until `done`, or to the end.
async fn read(socket: &mut Socket, done: impl Fn(&BTreeMap<u8, Vec<u8>>) -> bool) -> BTreeMap<u8, Vec<u8>> {
    let mut channels: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    let reading = async {
        while !done(&channels) {
            match socket.next().await {
                Some(Ok(Message::Binary(data))) => channels.entry(data[0]).or_default().extend(&data[1..]),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(20), reading).await;
    assert!(in_time.is_ok(), "still reading: {channels:?}");
    channels
}

fn contains(channels: &BTreeMap<u8, Vec<u8>>, text: &str) -> bool {
    channels.get(&1).is_some_and(|out| String::from_utf8_lossy(out).contains(text))
}

#[tokio::test]
async fn streams_reach_the_container() {
    in_world(4, async |world| {
        let client = world.up().await;
        let calls = Calls(&client);
        let config = pod(world, "streams");
        let sandbox = calls.run(&config).await;
        let id = calls.create(&sandbox, &config, &container("c", "while :; do sleep 0.1; done")).await;
        calls.start(&id).await;

        // A command with input, output and a code.
        let exec = |cmd: &str, tty| ExecRequest {
            container_id: id.clone(),
            cmd: ["sh", "-c", cmd].map(str::to_owned).to_vec(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let url = client.exec(exec("wc -c; echo e >&2; exit 5", false)).await.expect("a URL").url;
        let mut socket = open(&url, "v5.channel.k8s.io").await;
        for _ in 0..100 {
            send(&mut socket, 0, &[b'x'; 30_000]).await;
        }
        send(&mut socket, 255, &[0]).await;
        let channels = read(&mut socket, |_| false).await;
        assert_eq!((channels[&1].as_slice(), channels[&2].as_slice()), (&b"3000000\n"[..], &b"e\n"[..]));
        let status: serde_json::Value = serde_json::from_slice(&channels[&3]).expect("a status");
        assert_eq!(status["details"]["causes"][0]["message"], "5");

        // A terminal: its size, and a hang-up when the client leaves.
        let url =
            client.exec(exec("sleep 0.3; stty size; echo ready; exec cat", true)).await.expect("a URL").url;
        let mut socket = open(&url, "v5.channel.k8s.io").await;
        send(&mut socket, 4, br#"{"Width":101,"Height":33}"#).await;
        let channels = read(&mut socket, |seen| contains(seen, "ready")).await;
        assert!(contains(&channels, "33 101"), "{channels:?}");
        drop(socket);
        eventually("the terminal's process is hung up", async || {
            calls.exec(&id, "ps | grep -c '[ ]cat$'").await.0 == "0\n"
        })
        .await;

        // Joining a container's own terminal; leaving it alone afterwards.
        let mut shell = container("shell", "echo start; while read line; do echo got $line; done");
        (shell.stdin, shell.tty) = (true, true);
        let shell = calls.create(&sandbox, &config, &shell).await;
        calls.start(&shell).await;
        let attach = AttachRequest {
            container_id: shell.clone(),
            stdin: true,
            tty: true,
            stdout: true,
            stderr: false,
        };
        for word in ["one", "two"] {
            let url = client.attach(attach.clone()).await.expect("a URL").url;
            let mut socket = open(&url, "v4.channel.k8s.io").await;
            send(&mut socket, 0, format!("{word}\n").as_bytes()).await;
            read(&mut socket, |seen| contains(seen, &format!("got {word}"))).await;
        }
        assert_eq!(calls.status(&shell).await.state, ContainerState::ContainerRunning as i32);

        // A port inside the sandbox.
        calls.exec(&id, "mkdir /www; echo page > /www/index.html; httpd -p 127.0.0.1:8080 -h /www").await;
        let request = PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![8080] };
        let url = client.port_forward(request).await.expect("a URL").url;
        let mut socket = open(&url, "v4.channel.k8s.io").await;
        send(&mut socket, 0, b"GET /index.html HTTP/1.0\r\n\r\n").await;
        let page = read(&mut socket, |seen| {
            seen.get(&0).is_some_and(|data| String::from_utf8_lossy(data).contains("page\n"))
        })
        .await;
        assert!(page[&0].starts_with(&8080_u16.to_le_bytes()));
        calls.remove(&sandbox).await;
    })
    .await;
}
