//! The streaming server with clients written here, over real sockets; commands run on the node.

use std::collections::BTreeMap;
use std::process::Stdio;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::spdy::tests::Client;
use super::*;

mod over_tls;

/// Runs commands as processes of the test, and dials the test's own loopback.
struct Node;

struct Child(tokio::sync::Mutex<tokio::process::Child>, Mutex<Vec<(u16, u16)>>);

#[async_trait::async_trait]
impl Control for Child {
    async fn wait(&self) -> Ending {
        let status = self.0.lock().await.wait().await.expect("a child");
        // Sizes come back as the exit code, so that a test can see them.
        match self.1.lock().last() {
            Some((columns, rows)) => Ending::Exited(i32::from(columns + rows)),
            None => Ending::Exited(status.code().unwrap_or(255)),
        }
    }

    fn resize(&self, columns: u16, rows: u16) {
        self.1.lock().push((columns, rows));
    }

    async fn input_ended(&self) {}
}

#[async_trait::async_trait]
impl Backend for Node {
    async fn exec(&self, request: &ExecRequest) -> Result<Process, String> {
        let mut child = tokio::process::Command::new(&request.cmd[0])
            .args(&request.cmd[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("run {:?}: {error}", request.cmd[0]))?;
        let stdin = child.stdin.take().filter(|_| request.stdin);
        Ok(Process {
            stdin: stdin.map(|pipe| Box::new(pipe) as _),
            stdout: child.stdout.take().map(|pipe| Box::new(pipe) as _),
            stderr: child.stderr.take().map(|pipe| Box::new(pipe) as _),
            control: Arc::new(Child(tokio::sync::Mutex::new(child), Mutex::default())),
        })
    }

    async fn attach(&self, _: &AttachRequest) -> Result<Process, String> {
        Err("not running".to_owned())
    }

    async fn dial(&self, _: &str, port: u16) -> io::Result<TcpStream> {
        let sockets = [tokio::net::TcpSocket::new_v4(), tokio::net::TcpSocket::new_v6()];
        dial_local(port, sockets).await
    }
}

async fn server() -> StreamingServer {
    let any = "127.0.0.1:0".parse().expect("an address");
    StreamingServer::bind(any, None, Arc::new(Node)).await.expect("listens")
}

fn exec(cmd: &[&str], stdin: bool, tty: bool) -> Work {
    Work::Exec(ExecRequest {
        container_id: "c".into(),
        cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    })
}

fn path(url: &str) -> String {
    url.splitn(4, '/').nth(3).map(|path| format!("/{path}")).expect("a path")
}

/// Sends a request by hand; gives the head of the answer and the connection.
async fn upgrade(server: &StreamingServer, path: &str, headers: &str) -> (String, TcpStream) {
    let mut socket = TcpStream::connect(server.address()).await.expect("connects");
    let request = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    socket.write_all(request.as_bytes()).await.expect("sends");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.expect("an answer"));
    }
    (String::from_utf8(head).expect("text"), socket)
}

async fn spdy(server: &StreamingServer, work: Work, protocols: &str) -> Client<TcpStream> {
    let url = server.url(work).expect("a URL");
    let headers =
        format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocols}\r\n");
    let (head, socket) = upgrade(server, &path(&url), &headers).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    Client::new(socket)
}

type Socket<T = TcpStream> = WebSocketStream<T>;

async fn websocket(server: &StreamingServer, work: Work, protocols: &str) -> Socket {
    let url = server.url(work).expect("a URL").replace("http:", "ws:");
    let mut request = url.into_client_request().expect("a request");
    let value = protocols.parse().expect("a header");
    request.headers_mut().insert("Sec-WebSocket-Protocol", value);
    let socket = TcpStream::connect(server.address()).await.expect("connects");
    client_async(request, socket).await.expect("upgrades").0
}

/// Reads to the end; bytes by channel.
async fn read_all<T: AsyncRead + AsyncWrite + Unpin>(socket: &mut Socket<T>) -> BTreeMap<u8, Vec<u8>> {
    let mut channels: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    let reading = async {
        while let Some(message) = socket.next().await {
            match message.expect("a whole message") {
                Message::Binary(data) => channels.entry(data[0]).or_default().extend(&data[1..]),
                Message::Close(frame) => assert_eq!(u16::from(frame.expect("a reason").code), 1000),
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("ends");
    channels
}

async fn send<T: AsyncRead + AsyncWrite + Unpin>(socket: &mut Socket<T>, channel: u8, data: &[u8]) {
    let message = [&[channel], data].concat();
    socket.send(Message::binary(message)).await.expect("sends");
}

fn status(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).expect("a status")
}

#[tokio::test]
async fn urls_work_once_and_only_for_upgrades() {
    let server = server().await;
    let url = server.url(exec(&["true"], false, false)).expect("a URL");
    let (head, _) = upgrade(&server, &path(&url), "").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let (head, _) = upgrade(&server, &path(&url), "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n").await;
    assert!(head.starts_with("HTTP/1.1 404"), "a replay: {head}");
    let url = server.url(exec(&["true"], false, false)).expect("a URL");
    let headers = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9\r\n";
    let (head, _) = upgrade(&server, &path(&url), headers).await;
    assert!(head.starts_with("HTTP/1.1 403") && head.contains("v4.channel.k8s.io"), "{head}");
    let url = server.url(exec(&["true"], false, false)).expect("a URL").replace("/exec/", "/attach/");
    assert!(upgrade(&server, &path(&url), "").await.0.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_command_over_spdy_has_streams_and_a_code() {
    let server = server().await;
    let script = "cat; echo err >&2; exit 3";
    let mut client = spdy(&server, exec(&["sh", "-c", script], true, false), "v4.channel.k8s.io").await;
    let error = client.open(&[("streamType", "error")]).await;
    let stdin = client.open(&[("streamType", "stdin")]).await;
    let stdout = client.open(&[("streamType", "stdout")]).await;
    let stderr = client.open(&[("streamType", "stderr")]).await;
    client.until(|c| c.replied.len() == 4).await;
    let data: Vec<u8> = (0..400_000u32).flat_map(u32::to_le_bytes).collect();
    let (mut sent, mut back) = (0, 0);
    while back < data.len() {
        if sent < data.len() {
            let end = (sent + 30_000).min(data.len());
            client.data(stdin, &data[sent..end], end == data.len()).await;
            sent = end;
        }
        if sent - back > 200_000 || sent == data.len() {
            assert!(client.step().await, "ends early");
        }
        back = client.data.get(&stdout).map_or(0, Vec::len);
    }
    client.read_to_end().await;
    assert!(client.data[&stdout] == data, "what came back is what was sent");
    assert_eq!(client.data[&stderr], b"err\n");
    let status = status(&client.data[&error]);
    assert_eq!(status["details"]["causes"][0]["message"], "3");
    assert!([error, stdout, stderr].iter().all(|id| client.closed.contains(id)));
}

#[tokio::test]
async fn old_clients_get_text() {
    let server = server().await;
    let mut client = spdy(&server, exec(&["/no/such"], false, false), "v3.channel.k8s.io").await;
    let error = client.open(&[("streamType", "error")]).await;
    client.open(&[("streamType", "stdout")]).await;
    client.open(&[("streamType", "stderr")]).await;
    client.read_to_end().await;
    let text = String::from_utf8_lossy(&client.data[&error]).into_owned();
    assert!(text.contains("/no/such"), "{text}");
}

#[tokio::test]
async fn a_command_over_websocket_v5_can_close_its_input() {
    let server = server().await;
    let protocols = "v5.channel.k8s.io, v4.channel.k8s.io";
    let mut socket = websocket(&server, exec(&["sh", "-c", "cat; exit 7"], true, false), protocols).await;
    send(&mut socket, 0, b"hello ").await;
    socket.send(Message::Ping("x".into())).await.expect("sends");
    send(&mut socket, 0, b"world").await;
    send(&mut socket, 255, &[0]).await;
    let channels = read_all(&mut socket).await;
    assert_eq!(channels[&1], b"hello world");
    assert_eq!(status(&channels[&3])["details"]["causes"][0]["message"], "7");
}

#[tokio::test]
async fn terminals_are_resized_and_ends_are_told() {
    let server = server().await;
    let work = exec(&["sh", "-c", "read line; echo got $line"], true, true);
    let mut socket = websocket(&server, work, "v4.channel.k8s.io").await;
    send(&mut socket, 4, br#"{"Width":80,"Height":24}"#).await;
    // Sizes and input travel apart: the size has time until the input ends the command.
    tokio::time::sleep(Duration::from_millis(100)).await;
    send(&mut socket, 0, b"it\n").await;
    let channels = read_all(&mut socket).await;
    assert_eq!(channels[&1], b"got it\n");
    assert_eq!(status(&channels[&3])["details"]["causes"][0]["message"], "104");
    let mut socket = websocket(&server, exec(&["true"], false, false), "v4.channel.k8s.io").await;
    assert_eq!(status(&read_all(&mut socket).await[&3])["status"], "Success");
    let attach = Work::Attach(AttachRequest { stdout: true, ..Default::default() });
    let mut socket = websocket(&server, attach, "v5.channel.k8s.io").await;
    assert_eq!(status(&read_all(&mut socket).await[&3])["message"], "Internal error occurred: not running");
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_descriptors_along() {
    let server = server().await;
    let (probe, pid_file) = tempfile::NamedTempFile::new().expect("a file").into_parts();
    drop(probe);
    let script = format!("echo $$ > {}; exec cat", pid_file.display());
    let mut socket = websocket(&server, exec(&["sh", "-c", &script], true, false), "v5.channel.k8s.io").await;
    send(&mut socket, 0, b"x").await;
    while let Some(Ok(message)) = socket.next().await {
        if message.into_data().len() > 1 {
            break;
        }
    }
    let pid = std::fs::read_to_string(&pid_file).expect("written");
    drop(socket);
    let proc = format!("/proc/{}", pid.trim());
    let gone = async {
        while std::path::Path::new(&proc).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("its input ended, so it ended");
}

/// Answers every connection with what it reads to its end, turned round.
async fn reverser() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                let _ = socket.read_to_end(&mut all).await;
                all.reverse();
                let _ = socket.write_all(&all).await;
            });
        }
    });
    port
}

async fn forward<T: tokio::io::AsyncRead + tokio::io::AsyncWrite>(client: &mut Client<T>, port: u16) {
    let number = port.to_string();
    for request in ["0", "1"] {
        let pair = [("port", &*number), ("requestID", request)];
        let error = client.open(&[&pair[..], &[("streamType", "error")]].concat()).await;
        client.data(error, b"", true).await;
        let data = client.open(&[&pair[..], &[("streamType", "data")]].concat()).await;
        client.data(data, &vec![b'a'; 100_000], false).await;
        client.data(data, b"b", true).await;
        client.until(|c| c.closed.contains(&data) && c.closed.contains(&error)).await;
        assert!(!client.data[&error].iter().any(|_| true), "{:?}", client.data[&error]);
        assert_eq!(client.data[&data].len(), 100_001);
        assert_eq!(client.data[&data][0], b'b');
    }
    let pair = [("port", "1"), ("requestID", "9")];
    let data = client.open(&[&pair[..], &[("streamType", "data")]].concat()).await;
    let error = client.open(&[&pair[..], &[("streamType", "error")]].concat()).await;
    client.until(|c| c.closed.contains(&error) && c.closed.contains(&data)).await;
    let why = String::from_utf8_lossy(&client.data[&error]).into_owned();
    assert!(why.contains("port 1") && why.contains("refused"), "{why}");
}

fn forwarding(port: u16) -> Work {
    Work::Forward(PortForwardRequest { pod_sandbox_id: "s".into(), port: vec![port.into()] })
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy() {
    let (server, port) = (server().await, reverser().await);
    let mut client = spdy(&server, forwarding(port), "portforward.k8s.io").await;
    forward(&mut client, port).await;
}

#[tokio::test]
async fn ports_are_forwarded_through_spdy_in_websocket() {
    let (server, port) = (server().await, reverser().await);
    let socket = websocket(&server, forwarding(port), "SPDY/3.1+portforward.k8s.io").await;
    let mut client = Client::new(websocket::byte_pipe(socket));
    forward(&mut client, port).await;
}

#[tokio::test]
async fn ports_are_forwarded_over_channels() {
    let server = server().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let mut socket = websocket(&server, forwarding(port), "v4.channel.k8s.io").await;
    let (mut inside, _) = listener.accept().await.expect("connected");
    send(&mut socket, 0, b"ping").await;
    let mut four = [0; 4];
    inside.read_exact(&mut four).await.expect("forwarded");
    assert_eq!(&four, b"ping");
    inside.write_all(b"pong").await.expect("sends");
    drop(inside);
    // The data channel cannot be closed alone; its bytes came all the same.
    let mut seen: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    while seen.get(&0).is_none_or(|data| data.len() < 6) {
        let data = socket.next().await.expect("open").expect("whole").into_data();
        seen.entry(data[0]).or_default().extend(&data[1..]);
    }
    let head = port.to_le_bytes();
    assert_eq!(seen[&0], [&head[..], b"pong"].concat());
    assert_eq!(seen[&1], head);
}
