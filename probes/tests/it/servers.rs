//! Small servers that answer as a test says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Answers each connection's request with what `answer` makes of it; an empty answer closes, `None` hangs.
pub async fn raw(
    answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, requests) = mpsc::unbounded_channel();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let (answer, seen) = (Arc::clone(&answer), seen.clone());
            tokio::spawn(async move { one(stream, answer.as_ref(), &seen).await });
        }
    });
    (address, requests)
}

pub async fn one(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    answer: &(impl Fn(&str) -> Option<String> + ?Sized),
    seen: &mpsc::UnboundedSender<String>,
) {
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            return;
        }
        request.push(char::from(byte[0]));
    }
    let answer = answer(&request);
    let _ = seen.send(request);
    match answer {
        Some(answer) => {
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        None => std::future::pending().await,
    }
}

/// A complete HTTP answer.
pub fn answer(status: &str, headers: &str, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()))
}

/// A gRPC server that answers every call with this payload and this status; `None` hangs.
pub async fn grpc(
    reply: impl Fn(&str, &[u8]) -> Option<(Vec<u8>, u32)> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let reply = Arc::new(reply);
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let reply = Arc::clone(&reply);
            let service = service_fn(move |request: Request<Incoming>| {
                let reply = Arc::clone(&reply);
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    // Behind the five bytes of a gRPC message's header.
                    let Some((payload, status)) = reply(&path, &body[5..]) else {
                        return std::future::pending().await;
                    };
                    let mut message = vec![0];
                    message.extend((payload.len() as u32).to_be_bytes());
                    message.extend(payload);
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from(status));
                    trailers.insert("grpc-message", HeaderValue::from_static("so%20it%20is"));
                    let frames = [Frame::data(Bytes::from(message)), Frame::trailers(trailers)];
                    let body = StreamBody::new(futures::stream::iter(frames).map(Ok::<_, Infallible>));
                    let response = Response::builder().header("content-type", "application/grpc").body(body);
                    Ok::<_, Infallible>(response.unwrap())
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}
