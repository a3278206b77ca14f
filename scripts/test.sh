#!/usr/bin/env bash
# Runs the tests: the crates' own, then the scenarios against the built binary, then those in virtual machines.
# Usage: test.sh [unit|scenarios|critest|vm|vm-power]
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-all}
start=$(date +%s)
if [ "$(id -u)" != 0 ]; then
  echo "test: not root: tests that make namespaces and mounts will say that they are skipped" >&2
fi

# wanted PART: whether this part was asked for.
wanted() { [ "$what" = "$1" ] || [ "$what" = all ]; }

export RUST_BACKTRACE=0 RUST_LIB_BACKTRACE=0
export ORLOP_TEST_BINARY="${CARGO_TARGET_DIR:-$PWD/target}/debug/orlop" ORLOP_TEST_IMAGES="$PWD/out/images"
export ORLOP_TEST_CRITEST="$PWD/out/critest"
# Both workspaces build into one directory.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"

if wanted unit; then
  # A workspace of its own; the runtime's tests run the program that it makes.
  cargo test --manifest-path runtime/libcontainer/Cargo.toml --quiet
  cargo build --manifest-path runtime/libcontainer/Cargo.toml --quiet
  cargo test --workspace --exclude tests --exclude vm --no-fail-fast --quiet
  echo "test: the crates' own tests took $((($(date +%s) - start))) s"
fi
if [ "$what" != unit ]; then
  scripts/clients.sh out/bin
  tests/images/build.sh out/images
  tests/critest/build.sh out/critest out/images/cache
  cargo build --package orlop
  cargo build --manifest-path runtime/libcontainer/Cargo.toml --quiet
fi
if wanted scenarios; then
  begin=$(date +%s)
  cargo test --package tests --no-fail-fast -- --nocapture --test-threads=2
  echo "test: the scenarios took $((($(date +%s) - begin))) s"
fi
if [ "$what" = critest ]; then
  # The scenarios have it, too.
  cargo test --package tests --test critest -- --nocapture
fi
if wanted vm; then
  begin=$(date +%s)
  cargo test --package vm -- --nocapture
  echo "test: the tests in virtual machines took $((($(date +%s) - begin))) s"
fi
if [ "$what" = vm-power ]; then
  # The rest has some rounds of it, too.
  ORLOP_VM_POWER_ROUNDS=${ORLOP_VM_POWER_ROUNDS:-50} cargo test --package vm --test it -- power
fi
echo "test: all of it took $((($(date +%s) - start) / 60)) min $((($(date +%s) - start) % 60)) s"
