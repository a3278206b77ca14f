#!/usr/bin/env bash
# Starts a cluster below out/node, waits until the node is Ready, runs the example, and shows its answer.
# Usage: run.sh ORLOP
set -euo pipefail
cd "$(dirname "$0")/.."

orlop=${1:?name the binary}
root=$PWD/out/node
kubeconfig=$root/etc/admin.kubeconfig
page=http://127.0.0.1:18080/

if [ "$(id -u)" != 0 ]; then
  echo "run: a node makes namespaces and mounts, so it must be root: sudo make run" >&2
  exit 1
fi

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

finish() {
  trap - EXIT INT TERM
  say "Stopping the cluster"
  kill "$daemon" 2>/dev/null && wait "$daemon" 2>/dev/null || true
  "$orlop" --root "$root" stop
}

# Waits up to $1 seconds until the rest succeeds; a daemon that ended is not waited for.
until_true() {
  local deadline=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    kill -0 "$daemon" 2>/dev/null || { echo "run: the node ended; its log is above" >&2; exit 1; }
    [ $SECONDS -lt $deadline ] || { echo "run: waited in vain for: $*" >&2; exit 1; }
    sleep 0.1
  done
}

say "Starting the cluster below $root"
"$orlop" --root "$root" server &
daemon=$!
trap finish EXIT
trap 'exit 130' INT TERM

until_true 60 "$orlop" --root "$root" status --wait-ready
say "The node is Ready"
"$orlop" --root "$root" image import out/images/hello.tar
"$orlop" --root "$root" apply -f examples/hello.yaml
until_true 60 curl -fsS "$page"
"$orlop" --root "$root" status
say "The pod's answer at $page"
curl -fsS "$page"

say "How to go on, from another terminal"
cat <<EOF
  export KUBECONFIG=$kubeconfig
  kubectl get all
  kubectl logs deployment/hello
  kubectl exec -it deployment/hello -- sh
  crictl --runtime-endpoint unix://$root/run/cri.sock ps

The node's log follows. Ctrl-C stops the cluster.
EOF
wait "$daemon"
