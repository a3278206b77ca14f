//! A server of its own for each test, and a small client.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use apiserver::{Config, Server};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use pki::{ClusterPki, Identity};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::sync::oneshot;

pub struct Cluster {
    pub pki: ClusterPki,
    pub address: SocketAddr,
    pub store: Option<Arc<dyn store::Store>>,
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    running: Option<tokio::task::JoinHandle<()>>,
}

impl Cluster {
    pub async fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let pki = ClusterPki::open_or_create(&dir.path().join("pki")).unwrap();
        let mut cluster = Cluster {
            pki,
            address: "127.0.0.1:0".parse().unwrap(),
            store: None,
            dir,
            stop: None,
            running: None,
        };
        cluster.boot().await;
        cluster
    }

    async fn boot(&mut self) {
        let serving = self.pki.serving("kube-apiserver", &["127.0.0.1".into()]).unwrap();
        let kubelet = self.pki.client("kube-apiserver-kubelet-client", "system:masters").unwrap();
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            cert_pem: serving.cert_pem,
            key_pem: serving.key_pem,
            ca_pem: self.pki.ca_pem().to_owned(),
            service_account_key_pem: self.pki.service_account_key().key_pem.clone(),
            service_account_public_pem: self.pki.service_account_key().cert_pem.clone(),
            issuer: Config::DEFAULT_ISSUER.to_owned(),
            kubelet_client_cert_pem: kubelet.cert_pem,
            kubelet_client_key_pem: kubelet.key_pem,
            service_cidr: "10.96.0.0/24".parse().unwrap(),
            advertise: "127.0.0.1:6443".parse().unwrap(),
        };
        let store = store::open_embedded(&self.dir.path().join("store")).unwrap();
        self.store = Some(store.clone());
        let server = Server::bind(config, store).await.unwrap();
        self.address = server.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        self.stop = Some(stop);
        self.running = Some(tokio::spawn(server.run(async { drop(stopped.await) })));
    }

    /// Stops the server and starts another one on the same store.
    pub async fn restart(&mut self) {
        self.stop().await;
        // The store unlocks when its last user is gone, which may be a task that is just ending.
        self.boot().await;
    }

    pub async fn stop(&mut self) {
        drop(self.stop.take());
        self.store = None;
        tokio::time::timeout(Duration::from_secs(8), self.running.take().unwrap()).await.unwrap().unwrap();
    }

    pub fn admin(&self) -> Client {
        self.client(Some(self.pki.client("admin", "system:masters").unwrap()))
    }

    pub fn client(&self, identity: Option<Identity>) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pki.ca_pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let tls = match identity {
            None => builder.with_no_client_auth(),
            Some(id) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(id.cert_pem.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(id.key_pem.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        Client { address: self.address, tls: Arc::new(tls) }
    }
}

pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

pub struct Reply {
    pub code: u16,
    pub headers: HeaderMap,
    pub raw: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.raw).unwrap_or(Value::Null)
    }

    /// The body of an answer that must be a success.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert!((200..300).contains(&self.code), "{} {}", self.code, String::from_utf8_lossy(&self.raw));
        self.json()
    }

    /// The reason of an answer that must be a refusal with this code.
    #[track_caller]
    pub fn refused(&self, code: u16) -> String {
        assert_eq!(self.code, code, "{}", String::from_utf8_lossy(&self.raw));
        let status = self.json();
        assert_eq!(status["kind"], "Status");
        assert_eq!(status["code"], code);
        status["reason"].as_str().unwrap_or("").to_owned()
    }
}

impl Client {
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        self.try_send(request).await.unwrap()
    }

    pub async fn try_send(&self, mut request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        let tcp = tokio::net::TcpStream::connect(self.address).await?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let tls = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection.with_upgrades());
        request.headers_mut().insert("host", self.address.to_string().parse()?);
        Ok(sender.send_request(request).await?)
    }

    pub async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let mut request = Request::new(Full::new(body.into()));
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        *request.uri_mut() = path.parse().unwrap();
        for (name, value) in headers {
            request
                .headers_mut()
                .append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let response = self.send(request).await;
        let (code, headers) = (response.status().as_u16(), response.headers().clone());
        Reply { code, headers, raw: response.into_body().collect().await.unwrap().to_bytes() }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.call("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Reply {
        self.call("PUT", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: &Value) -> Reply {
        let content = format!("application/{kind}");
        self.call("PATCH", path, &[("content-type", &content)], body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.call("DELETE", path, &[], "").await
    }

    pub async fn watch(&self, path: &str) -> Watch {
        self.watch_as(path, "application/json").await
    }

    pub async fn watch_as(&self, path: &str, accept: &str) -> Watch {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = path.parse().unwrap();
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let response = self.send(request).await;
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body(), buffer: BytesMut::new() }
    }
}

pub struct Watch {
    body: Incoming,
    buffer: BytesMut,
}

impl Watch {
    /// The next event, or none at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(at);
                self.buffer.advance(1);
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame())
                .await
                .expect("an event within ten seconds");
            self.buffer.extend_from_slice(frame?.ok()?.data_ref()?);
        }
    }

    /// The next event as `TYPE name`.
    pub async fn line(&mut self) -> String {
        match self.next().await {
            None => "END".to_owned(),
            Some(e) => {
                let object = &e["object"];
                format!(
                    "{} {}",
                    e["type"].as_str().unwrap(),
                    object["metadata"]["name"].as_str().unwrap_or("-")
                )
            }
        }
    }
}

pub const CM: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";

pub fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}
