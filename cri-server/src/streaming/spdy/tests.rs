//! A client written for the tests, and what it sees.

use std::collections::HashMap;

use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

use super::*;

/// The client's side of a connection: frames in, frames out.
pub struct Client<T = DuplexStream> {
    read: ReadHalf<T>,
    write: WriteHalf<T>,
    packer: Packer,
    expander: Expander,
    next_id: u32,
    pub replied: Vec<u32>,
    pub data: HashMap<u32, Vec<u8>>,
    pub closed: Vec<u32>,
    pub others: Vec<Frame>,
}

impl<T: AsyncRead + AsyncWrite> Client<T> {
    pub fn new(io: T) -> Client<T> {
        let (read, write) = tokio::io::split(io);
        Client {
            read,
            write,
            packer: Packer::default(),
            expander: Expander::default(),
            next_id: 1,
            replied: Vec::new(),
            data: HashMap::new(),
            closed: Vec::new(),
            others: Vec::new(),
        }
    }

    pub async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        frame.write(&mut bytes);
        self.write.write_all(&bytes).await.expect("the server reads");
        self.write.flush().await.expect("the server reads");
    }

    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let headers: Headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let id = self.next_id;
        self.next_id += 2;
        let block = self.packer.write(&headers);
        self.send(Frame::SynStream { id, priority: 0, fin: false, unidirectional: false, block }).await;
        id
    }

    pub async fn data(&mut self, id: u32, data: &[u8], fin: bool) {
        self.send(Frame::Data { id, fin, data: Bytes::copy_from_slice(data) }).await;
    }

    /// Reads one frame and files it; `false` at the connection's end.
    pub async fn step(&mut self) -> bool {
        let mut head = [0; frame::HEAD];
        if self.read.read_exact(&mut head).await.is_err() {
            return false;
        }
        match Head::parse(head).expect("a head") {
            Head::Data { id, fin, length } => {
                let mut data = vec![0; length];
                self.read.read_exact(&mut data).await.expect("a whole frame");
                self.data.entry(id).or_default().extend(data);
                if fin {
                    self.closed.push(id);
                }
            }
            Head::Control { kind, flags, length } => {
                let mut payload = BytesMut::zeroed(length);
                self.read.read_exact(&mut payload).await.expect("a whole frame");
                match Frame::parse_control(kind, flags, payload.freeze()).expect("a frame").expect("known") {
                    Frame::SynReply { id, block, .. } => {
                        self.expander.read(&block).expect("a block");
                        self.replied.push(id);
                    }
                    other => self.others.push(other),
                }
            }
        }
        true
    }

    pub async fn until(&mut self, what: impl Fn(&Self) -> bool) {
        let wait = async {
            while !what(self) {
                assert!(self.step().await, "the server closed early");
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it happens");
    }

    pub async fn read_to_end(&mut self) {
        tokio::time::timeout(Duration::from_secs(10), async { while self.step().await {} })
            .await
            .expect("the server closes");
    }
}

fn pair() -> (Client, Connection) {
    let (ours, theirs) = tokio::io::duplex(256 << 10);
    (Client::new(ours), Connection::new(theirs))
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways() {
    let (mut client, mut server) = pair();
    let id = client.open(&[("streamType", "stdin")]).await;
    client.data(id, b"hello", true).await;
    let mut stream = server.accept().await.expect("opened");
    assert_eq!(stream.header("streamtype"), Some("stdin"));
    assert_eq!(stream.source.next().await.as_deref(), Some(&b"hello"[..]));
    assert_eq!(stream.source.next().await, None);
    stream.sink.send(Bytes::from(vec![7; 100_000])).await.expect("sent");
    stream.sink.finish().await.expect("sent");
    assert!(server.shared.open.lock().is_empty(), "both sides closed: forgotten");
    server.shared.out.send(Outgoing::End).await.ok();
    client.read_to_end().await;
    assert_eq!(client.replied, [id]);
    assert_eq!(client.data[&id].len(), 100_000);
    assert_eq!(client.closed, [id]);
}

#[tokio::test]
async fn pings_are_answered_and_bad_streams_reset() {
    let (mut client, mut server) = pair();
    client.send(Frame::Ping(1)).await;
    client.until(|c| c.others.contains(&Frame::Ping(1))).await;
    client.next_id = 2;
    client.open(&[]).await;
    client.until(|c| c.others.contains(&Frame::Reset { id: 2, status: frame::PROTOCOL_ERROR })).await;
    client.next_id = 5;
    let id = client.open(&[]).await;
    let stream = server.accept().await.expect("opened");
    drop(stream);
    client.until(|c| c.others.contains(&Frame::Reset { id, status: frame::CANCEL })).await;
    client.data(id, b"late", true).await;
    client.send(Frame::Ping(3)).await;
    client.until(|c| c.others.contains(&Frame::Ping(3))).await;
}

#[tokio::test]
async fn windows_are_kept_and_given_back() {
    let (mut client, mut server) = pair();
    client.send(Frame::Settings(vec![(frame::SETTING_INITIAL_WINDOW, 1000)])).await;
    let id = client.open(&[]).await;
    let mut stream = server.accept().await.expect("opened");
    let sender = tokio::spawn(async move {
        stream.sink.send(Bytes::from(vec![1; 2500])).await.expect("sent");
        stream.sink.finish().await.expect("sent");
        stream
    });
    client.until(|c| c.data.get(&id).is_some_and(|d| d.len() == 1000)).await;
    client.send(Frame::WindowUpdate { id, delta: 700 }).await;
    client.until(|c| c.data[&id].len() == 1700).await;
    client.send(Frame::WindowUpdate { id, delta: 5000 }).await;
    client.until(|c| c.closed == [id]).await;
    assert_eq!(client.data[&id].len(), 2500);
    let mut stream = sender.await.expect("sent");
    for _ in 0..3 {
        client.data(id, &[0; 20_000], false).await;
        stream.source.next().await.expect("data");
    }
    client.until(|c| c.others.iter().any(|f| matches!(f, Frame::WindowUpdate { .. }))).await;
}

#[tokio::test]
async fn a_lost_client_and_a_reset_end_streams() {
    let (mut client, mut server) = pair();
    let (first, _) = (client.open(&[]).await, client.open(&[]).await);
    let mut one = server.accept().await.expect("opened");
    let mut two = server.accept().await.expect("opened");
    client.send(Frame::Reset { id: first, status: frame::CANCEL }).await;
    one.reset.cancelled().await;
    assert_eq!(one.source.next().await, None);
    assert_eq!(one.sink.send(Bytes::from_static(b"x")).await, Err(Gone));
    assert!(!two.reset.is_cancelled());
    drop(client);
    two.reset.cancelled().await;
    assert_eq!(two.source.next().await, None);
    assert!(server.accept().await.is_none());
}
