#!/bin/sh
# Runs critest on a machine, or in a network namespace, that has nothing else to do: starts a registry with its images and
# `orlop cri`, runs it, ends both. `build.sh` puts a copy beside what it needs, so that its directory is enough.
# Usage: run.sh ORLOP ROOT [critest's flags]     ROOT/critest.json becomes the report, ROOT/orlop.log the daemon's log
# Needs docker-registry, curl, ipcmk, a route to anywhere; apparmor_parser where AppArmor is active.
set -eu

here=$(dirname "$(readlink -f "$0")")
orlop=${1:?usage: run.sh ORLOP ROOT [critest\'s flags]}
root=${2:?usage: run.sh ORLOP ROOT [critest\'s flags]}
shift 2
mkdir -p "$root/etc" "$root/bin"

# The AppArmor specs call `sudo apparmor_parser`; we are root already.
printf '#!/bin/sh\nexec "$@"\n' >"$root/bin/sudo"
chmod 755 "$root/bin/sudo"
export PATH="$root/bin:/usr/sbin:/sbin:$PATH"

cat >"$root/registry.yml" <<EOF
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $here/registry}, maintenance: {readonly: {enabled: true}}}
http: {addr: '127.0.0.1:5000'}
EOF
OTEL_TRACES_EXPORTER=none docker-registry serve "$root/registry.yml" >"$root/registry.log" 2>&1 &
registry=$!
echo "registryConfigDir: $here/certs.d" >"$root/etc/config.yaml"
"$orlop" --root "$root" cri >"$root/orlop.log" 2>&1 &
daemon=$!

finish() {
    code=$?
    trap - EXIT
    kill "$daemon" "$registry" 2>/dev/null || true
    wait "$daemon" "$registry" 2>/dev/null || true
    "$orlop" --root "$root" stop >>"$root/orlop.log" 2>&1 || code=1
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Asks until both answer; each question waits a little, so that this is no busy loop.
ready() {
    curl -fsS -o /dev/null --retry 30 --retry-connrefused --retry-delay 1 "http://127.0.0.1:5000/v2/" &&
        curl -s -o /dev/null --http2-prior-knowledge --unix-socket "$root/run/cri.sock" http://cri/
}
tries=0
until ready; do
    tries=$((tries + 1))
    if [ "$tries" -gt 300 ] || ! kill -0 "$daemon" 2>/dev/null; then
        echo "critest/run.sh: the daemon does not answer; it said:" >&2
        cat "$root/orlop.log" >&2
        exit 1
    fi
    sleep 0.1
done
cd "$root"
socket=unix://$root/run/cri.sock
"$here/critest" -runtime-endpoint "$socket" -image-endpoint "$socket" -ginkgo.no-color -ginkgo.seed=1 \
    -ginkgo.timeout=60m -ginkgo.json-report="$root/critest.json" "$@"
