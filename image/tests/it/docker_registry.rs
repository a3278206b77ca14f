//! The registry that Debian packages, with content pushed over HTTP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::fixture::{Place, root, two_layers, wait_for};

struct Registry {
    child: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One HTTP exchange; the answer's head.
fn exchange(address: &str, method: &str, path: &str, media_type: &str, body: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).split("\r\n\r\n").next().unwrap_or_default().to_owned())
}

impl Registry {
    fn start(place: &Place) -> Option<Registry> {
        let address = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.to_string();
        let data = place.dir.path().join("registry");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            data.display()
        );
        let file = place.dir.path().join("registry.yml");
        std::fs::write(&file, config).ok()?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            println!("skipped: no docker-registry here");
            return None;
        };
        let registry = Registry { child, address };
        wait_for("the registry to answer", || {
            exchange(&registry.address, "GET", "/v2/", "", b"").is_some_and(|head| head.contains(" 200 "))
        });
        Some(registry)
    }

    fn push(&self, repository: &str, tag: &str, content: &crate::fixture::Content) {
        for (digest, bytes) in &content.blobs {
            let start = format!("/v2/{repository}/blobs/uploads/");
            let head = exchange(&self.address, "POST", &start, "", b"").expect("an upload");
            let location = head
                .lines()
                .find_map(|line| line.strip_prefix("Location: "))
                .and_then(|url| url.split_once(&self.address))
                .expect("a place for it")
                .1;
            let path = format!("{location}&digest={digest}");
            let head =
                exchange(&self.address, "PUT", &path, "application/octet-stream", bytes).expect("uploaded");
            assert!(head.contains(" 201 "), "{head}");
        }
        let (media_type, bytes) = &content.manifests[&content.manifest];
        let path = format!("/v2/{repository}/manifests/{tag}");
        let head = exchange(&self.address, "PUT", &path, media_type, bytes).expect("uploaded");
        assert!(head.contains(" 201 "), "{head}");
    }
}

#[tokio::test]
async fn pulls_what_was_pushed() {
    if !root() {
        return;
    }
    let place = Place::new();
    let Some(registry) = Registry::start(&place) else { return };
    let content = two_layers();
    registry.push("team/app", "v1", &content);
    let store = place.open();
    for name in ["team/app:v1".to_owned(), format!("team/app@{}", content.manifest)] {
        let reference = format!("{}/{name}", registry.address).parse().expect("a reference");
        let image = store.pull(&reference, None, None).await.expect("pulled");
        assert_eq!(image.id.as_str(), content.config);
    }
    let unknown = format!("{}/team/none:v1", registry.address).parse().expect("a reference");
    let err = store.pull(&unknown, None, None).await.expect_err("unknown");
    assert_eq!(err.kind(), image::ErrorKind::NotFound);
}
