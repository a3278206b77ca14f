//! Volumes and environment.

use anyhow::ensure;
use tests::{Node, eventually};

use crate::manifests::{IDLE, pod_with};
use crate::needs_root;

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_every_kind() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    node.kubectl(&["create", "configmap", "settings", "--from-literal=colour=red", "--from-literal=size=9"])
        .await?
        .ok()?;
    node.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=password=s3cret"]).await?.ok()?;
    let spec = r#"  volumes:
    - {name: disk, emptyDir: {}}
    - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
    - {name: settings, configMap: {name: settings, items: [{key: colour, path: sub/colour}]}}
    - {name: hidden, secret: {secretName: hidden, defaultMode: 0400}}
    - name: about
      downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
    - name: all
      projected:
        sources:
          - serviceAccountToken: {path: token, expirationSeconds: 3600}
          - configMap: {name: settings}
          - secret: {name: hidden}
"#;
    let container = r#"      env:
        - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
        - {name: PASSWORD, valueFrom: {secretKeyRef: {name: hidden, key: password}}}
        - {name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: TWICE, value: $(COLOUR)-$(COLOUR)}
      envFrom: [{prefix: S_, configMapRef: {name: settings}}]
      volumeMounts:
        - {name: disk, mountPath: /disk}
        - {name: memory, mountPath: /memory}
        - {name: settings, mountPath: /settings}
        - {name: hidden, mountPath: /hidden, readOnly: true}
        - {name: about, mountPath: /about}
        - {name: all, mountPath: /all}
        - {name: settings, mountPath: /one/file, subPath: sub/colour}
"#;
    node.apply(&pod_with("v", IDLE, container, spec)).await?;
    node.wait_ready("v").await?;
    let sh = |script: &'static str| {
        let node = &node;
        async move { node.kubectl(&["exec", "v", "--", "sh", "-c", script]).await?.ok() }
    };
    ensure!(sh("echo $COLOUR $PASSWORD $ME $TWICE $S_size").await? == "red s3cret v red-red 9\n");
    ensure!(sh("cat /settings/sub/colour /one/file /hidden/password /all/size").await? == "redreds3cret9");
    ensure!(sh("cat /about/labels").await?.contains("app=\"v\""));
    ensure!(sh("stat -L -c %a /hidden/password").await? == "400\n");
    ensure!(sh("grep ' /memory ' /proc/mounts").await?.contains("tmpfs"));
    ensure!(sh("cut -d. -f1 /all/token | head -c 2").await? == "ey");
    ensure!(sh("ls /var/run/secrets/kubernetes.io/serviceaccount").await? == "ca.crt\nnamespace\ntoken\n");
    ensure!(sh("touch /hidden/x 2>&1 || true").await?.contains("Read-only"));
    node.kubectl(&["patch", "secret", "hidden", "-p", r#"{"stringData":{"password":"changed"}}"#])
        .await?
        .ok()?;
    eventually("the secret's change in the pod", || async {
        let now = sh("cat /hidden/password /all/password").await?;
        ensure!(now == "changedchanged", "{now}");
        Ok(())
    })
    .await?;
    let uid = node.kubectl(&["get", "pod", "v", "-o", "jsonpath={.metadata.uid}"]).await?.ok()?;
    node.kubectl(&["delete", "pod", "v", "--timeout=30s"]).await?.ok()?;
    ensure!(!node.root.join("data/kubelet/pods").join(uid).exists(), "the pod's directory is still there");
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_waited_for_and_said() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    let spec = "  volumes: [{name: c, configMap: {name: later}}]\n";
    node.apply(&pod_with("m", IDLE, "      volumeMounts: [{name: c, mountPath: /c}]\n", spec)).await?;
    eventually("the reason", || async {
        let described = node.kubectl(&["describe", "pod", "m"]).await?.ok()?;
        ensure!(
            described.contains("FailedMount") && described.contains("configmap \"later\" not found"),
            "{described}"
        );
        Ok(())
    })
    .await?;
    node.kubectl(&["create", "configmap", "later", "--from-literal=k=v"]).await?.ok()?;
    node.wait_ready("m").await?;
    node.kubectl(&["delete", "pod", "m"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn security_context_is_in_force() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    let container = r#"      securityContext:
        runAsUser: 1000
        runAsGroup: 2000
        readOnlyRootFilesystem: true
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
"#;
    let spec = "  hostname: named\n  securityContext: {supplementalGroups: [3000]}\n";
    node.apply(&pod_with("s", IDLE, container, spec)).await?;
    node.wait_ready("s").await?;
    let status = node
        .kubectl(&[
            "exec",
            "s",
            "--",
            "sh",
            "-c",
            "id; hostname; cat /proc/1/status; touch /x 2>&1; ls /proc/kcore -l",
        ])
        .await?
        .stdout;
    ensure!(status.contains("uid=1000 gid=2000") && status.contains("3000"), "{status}");
    ensure!(status.contains("named\n") && status.contains("Read-only file system"), "{status}");
    let line = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    ensure!(line("NoNewPrivs:") == "1" && line("Seccomp:") == "2", "{status}");
    ensure!(line("CapBnd:") == "0000000000000400" && line("CapInh:") == "0000000000000000", "{status}");
    node.kubectl(&["delete", "pod", "s"]).await?.ok()?;
    node.end().await
}
