#!/usr/bin/env bash
# Measures Orlop beside its budgets and, where Debian's containerd, runc and containernetworking-plugins are
# installed, beside them. Everything runs in namespaces of its own (PIDs, mounts, network) and in one
# directory, so that nothing is left, however it ends.
# Usage: bench.sh ORLOP   (BENCH_ROUNDS, BENCH_WARM_UP, BENCH_PODS, BENCH_LONG_ROUNDS, BENCH_ALONE=true;
# BENCH_PROGRAM names a bench that is built already)
set -euo pipefail
cd "$(dirname "$0")/.."

# Inside the namespaces, as process 1: bash waits for whatever its children leave to it.
inside() {
  ip link set lo up
  # A route to the outside gives the node an address; the packets go nowhere.
  ip link add outside type bridge
  ip addr add 10.99.0.2/24 dev outside
  ip link set outside up
  ip route add default via 10.99.0.1
  # Where containerd's shims and the CNI plugins keep state, whatever their configuration says.
  local dir
  for dir in /run/containerd /var/lib/cni; do
    if [ -d "$dir" ]; then mount -t tmpfs bench "$dir"; fi
  done
  "$@"
  return $?
}

if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
  exit $?
fi

orlop=$(realpath "${1:?name the binary}")
if [ "$(id -u)" != 0 ]; then
  echo "bench: a node makes namespaces and mounts, so it must be root: sudo make bench" >&2
  exit 1
fi
bench/images.sh out/images
bench=${BENCH_PROGRAM:-}
if [ -z "$bench" ]; then
  cargo build --quiet --release --package bench
  bench=${CARGO_TARGET_DIR:-$PWD/target}/release/bench
fi

# Removes what a run leaves in its directory, and cgroups, which are no namespace's: Orlop removes its own,
# the rest has the directory's name.
clean_up() {
  local node
  for node in "$1"/orlop-*; do
    if [ -d "$node/run" ]; then
      unshare --net --mount "$orlop" --root "$node" --log error stop || true
    fi
  done
  find /sys/fs/cgroup -depth -type d -path "*/${1##*/}*" -exec rmdir {} + 2>/dev/null || true
  rm -rf --one-file-system "$1"
}

# A run that was killed could not clean up; its processes died with it.
temporary=${TMPDIR:-/tmp}
for left in "$temporary"/orlop-bench.*.*; do
  owner=${left#"$temporary"/orlop-bench.}
  if [ -d "$left" ] && [ ! -d "/proc/${owner%%.*}" ]; then clean_up "$left"; fi
done

root=$(mktemp -d "$temporary/orlop-bench.$$.XXXXXX")
chmod 755 "$root"
# The mounts of `inside` need these directories to be there.
made=()
for dir in /run/containerd /var/lib/cni; do
  if [ ! -d "$dir" ]; then mkdir -p "$dir" && made+=("$dir"); fi
done
main=

finish() {
  trap - EXIT INT TERM
  # With its first process every other of the namespace ends.
  if [ -n "$main" ]; then kill -KILL "$main" 2>/dev/null && wait "$main" 2>/dev/null || true; fi
  clean_up "$root"
  local dir
  for dir in "${made[@]}"; do rmdir "$dir" 2>/dev/null || true; done
}
trap finish EXIT
trap 'exit 130' INT TERM

setpriv --pdeathsig KILL unshare --net --mount --pid --fork --kill-child --mount-proc \
  bash "$PWD/scripts/bench.sh" --inside "$bench" --orlop "$orlop" --images "$PWD/out/images" \
  --push "$PWD/tests/images/push.sh" --root "$root" &
main=$!
code=0
wait "$main" || code=$?
main=
exit "$code"
