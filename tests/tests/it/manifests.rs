//! Manifests that several tests use.

/// The image that most tests run: a shell and the usual tools.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// A pod that runs `script`.
pub fn pod(name: &str, script: &str) -> String {
    pod_with(name, script, "", "")
}

/// The same with more fields of the container (indented by six) and of the spec (by two).
pub fn pod_with(name: &str, script: &str, container: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 2\n{spec}  containers:\n    - name: main\n      image: {BUSYBOX}\n      \
         command: [sh, -c, {script:?}]\n{container}"
    )
}

/// The script of a container that does nothing, and ends at once when told to.
pub const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";

/// nginx with probes and a ConfigMap as its page, two replicas.
pub fn nginx(image: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: ConfigMap
metadata: {{name: page}}
data:
  index.html: "first page\n"
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {{app: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
        - name: nginx
          image: {image}
          ports: [{{name: http, containerPort: 80}}]
          readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
          livenessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 2}}
          volumeMounts: [{{name: page, mountPath: /var/www/html}}]
      volumes:
        - name: page
          configMap: {{name: page}}
"#
    )
}
