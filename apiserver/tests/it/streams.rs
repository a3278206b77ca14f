//! Logs and streams through a kubelet. The kubelet here is a small TLS server that speaks as one.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Client, Cluster, PODS, pod, provider};

/// Serves like a kubelet; only the apiserver's client certificate is let in.
async fn kubelet(cluster: &Cluster, names: &str) -> u16 {
    let serving = cluster.pki.serving("system:node:n", &[names.to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cluster.pki.ca_pem().as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
    let tls = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(serving.cert_pem.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let service = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .with_upgrades();
                // The tests cut connections off.
                let _ = service.await;
            });
        }
    });
    port
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    assert!(!request.headers().contains_key("authorization"));
    let uri = request.uri().to_string();
    if !uri.starts_with("/exec/") && !uri.starts_with("/portForward/") {
        let code = if uri.contains("tailLines=0") { 400 } else { 200 };
        return Ok(Response::builder().status(code).body(Full::from(uri)).unwrap());
    }
    if uri.contains("command=refuse") {
        return Ok(Response::builder().status(500).body(Full::from("no such program")).unwrap());
    }
    if uri.contains("command=elsewhere") {
        let to = "https://169.254.169.254/secrets";
        return Ok(Response::builder().status(302).header("location", to).body(Full::default()).unwrap());
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let mut said = Vec::new();
        // The client ends its side; the answer still goes back.
        io.read_to_end(&mut said).await.unwrap();
        io.write_all(format!("{uri} heard {}", String::from_utf8_lossy(&said)).as_bytes()).await.unwrap();
        io.shutdown().await.unwrap();
    });
    let protocol = request.headers().get("sec-websocket-protocol").cloned().unwrap();
    Ok(Response::builder()
        .status(101)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-protocol", protocol)
        .body(Full::default())
        .unwrap())
}

async fn with_pod(cluster: &Cluster, address: &str, port: u16) -> Client {
    let admin = cluster.admin();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    admin.post("/api/v1/nodes", &node).await.ok();
    let mut p = pod("p");
    p["spec"]["nodeName"] = json!("n");
    admin.post(PODS, &p).await.ok();
    admin
}

fn upgrade(path: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .uri(path)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "v5.channel.k8s.io")
        .body(Full::default())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_from_the_kubelet() {
    let cluster = Cluster::start().await;
    let port = kubelet(&cluster, "127.0.0.1").await;
    let admin = with_pod(&cluster, "127.0.0.1", port).await;
    let log = admin.get(&format!("{PODS}/p/log?follow=true&tailLines=5&evil=1")).await;
    assert_eq!(log.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(String::from_utf8_lossy(&log.raw), "/containerLogs/default/p/c?follow=true&tailLines=5");
    let refused = admin.get(&format!("{PODS}/p/log?tailLines=0")).await;
    assert_eq!(refused.refused(400), "BadRequest");
    let unknown = admin.get(&format!("{PODS}/p/log?container=..%2F..%2Frun")).await;
    assert_eq!(unknown.refused(400), "BadRequest");
    let stats = admin.get("/api/v1/nodes/n/proxy/stats/summary?only=1").await;
    assert_eq!(String::from_utf8_lossy(&stats.raw), "/stats/summary?only=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_both_ways_and_end_one_by_one() {
    let cluster = Cluster::start().await;
    let port = kubelet(&cluster, "127.0.0.1").await;
    let admin = with_pod(&cluster, "127.0.0.1", port).await;
    let mut response =
        admin.send(upgrade(&format!("{PODS}/p/exec?command=echo&command=a+b&stdin=true&stdout=true"))).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    io.shutdown().await.unwrap();
    let mut said = String::new();
    io.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "/exec/default/p/c?input=1&output=1&command=echo&command=a%20b heard hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_upgrades_are_passed_on_and_redirects_are_not_followed() {
    let cluster = Cluster::start().await;
    let port = kubelet(&cluster, "127.0.0.1").await;
    let admin = with_pod(&cluster, "127.0.0.1", port).await;
    for (command, code, text) in [("refuse", 500, "no such program"), ("elsewhere", 502, "302")] {
        let response = admin.send(upgrade(&format!("{PODS}/p/exec?command={command}"))).await;
        assert_eq!(response.status(), code);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains(text), "{body:?}");
    }
    assert_eq!(admin.get(&format!("{PODS}/p/exec?command=ls")).await.refused(400), "BadRequest");
    let proxied = admin.send(upgrade("/api/v1/nodes/n/proxy/exec/default/p/c?command=sh")).await;
    assert_eq!(proxied.status(), 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_node_itself_is_believed() {
    // Its certificate is for another address.
    let cluster = Cluster::start().await;
    let port = kubelet(&cluster, "127.0.0.9").await;
    let admin = with_pod(&cluster, "127.0.0.1", port).await;
    assert_eq!(admin.get(&format!("{PODS}/p/log")).await.refused(502), "BadGateway");
    // The metadata service of a cloud.
    let cluster = Cluster::start().await;
    let admin = with_pod(&cluster, "169.254.169.254", 80).await;
    assert_eq!(admin.get(&format!("{PODS}/p/log")).await.refused(503), "ServiceUnavailable");
}
