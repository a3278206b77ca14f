//! postStart and preStop.

use std::net::IpAddr;
use std::time::Duration;

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{HTTPGetAction, LifecycleHandler};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::pod::view::Member;
use crate::shared::Shared;

/// Whom a hook is run for.
pub struct HookTarget<'a> {
    /// Shared state.
    pub shared: &'a Shared,
    /// The container.
    pub container_id: &'a str,
    /// Its member, to resolve named ports; `None` for an orphan.
    pub member: Option<Member<'a>>,
    /// The pod's address.
    pub pod_ip: Option<IpAddr>,
}

/// Runs a hook for at most `limit`. The error says what went wrong, in the event's words.
pub async fn run(target: &HookTarget<'_>, hook: &LifecycleHandler, limit: Duration) -> Result<(), String> {
    let work = async {
        if let Some(exec) = &hook.exec {
            let cmd = exec.command.clone().unwrap_or_default();
            // The deadline is ours; the runtime's own is a whole number of seconds above it.
            let timeout = i64::try_from(limit.as_secs() + 1).unwrap_or(i64::MAX);
            let request =
                cri::ExecSyncRequest { container_id: target.container_id.into(), cmd: cmd.clone(), timeout };
            let answer =
                target.shared.cri.exec_sync(request).await.map_err(|err| err.message().to_owned())?;
            if answer.exit_code != 0 {
                let text = [answer.stdout, answer.stderr].concat();
                let text = String::from_utf8_lossy(&text).into_owned();
                return Err(format!("command '{}' exited with {}: {text}", cmd.join(" "), answer.exit_code));
            }
            Ok(())
        } else if let Some(get) = &hook.http_get {
            http(target, get).await
        } else if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            Ok(())
        } else if hook.tcp_socket.is_some() {
            Err("tcpSocket is not supported as a lifecycle hook: use exec, httpGet or sleep".into())
        } else {
            Err("invalid handler: it has no action".into())
        }
    };
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_elapsed) => Err(format!("it took longer than {} s", limit.as_secs())),
    }
}

/// The number of a port that may be given by name.
pub fn port(member: Option<&Member<'_>>, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(n) => u16::try_from(*n).ok(),
        IntOrString::String(name) => match name.parse() {
            Ok(n) => Some(n),
            Err(_) => {
                let ports = member?.spec.ports.iter().flatten();
                let found = ports.into_iter().find(|p| p.name.as_deref() == Some(name))?;
                u16::try_from(found.container_port).ok()
            }
        },
    }
}

async fn http(target: &HookTarget<'_>, get: &HTTPGetAction) -> Result<(), String> {
    if get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")) {
        return Err("HTTPS lifecycle hooks are not supported: use HTTP or exec".into());
    }
    let port = port(target.member.as_ref(), &get.port).ok_or("its port is not a port of the container")?;
    let ip = target.pod_ip.map(|ip| ip.to_string());
    let host = get.host.clone().filter(|h| !h.is_empty()).or(ip).ok_or("the pod has no address")?;
    let mut stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|err| format!("connect to {host}:{port}: {err}"))?;
    let path = get.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let shown = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: {shown}:{port}\r\nUser-Agent: kube-lifecycle/1.36\r\nAccept: */*\r\nConnection: close\r\n"
    );
    for header in get.http_headers.iter().flatten() {
        request.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|err| format!("send request: {err}"))?;
    // The answer's status line is all that counts.
    let mut head = vec![0; 1024];
    let mut len = 0;
    while len < head.len() && !head[..len].contains(&b'\n') {
        match stream.read(&mut head[len..]).await {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(err) => return Err(format!("read answer: {err}")),
        }
    }
    let line = String::from_utf8_lossy(&head[..len]).into_owned();
    let line = line.lines().next().unwrap_or("").to_owned();
    match line.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok()) {
        Some(200..=399) => Ok(()),
        _ => Err(format!("HTTP hook answered: {line}")),
    }
}
