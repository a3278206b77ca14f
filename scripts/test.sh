#!/usr/bin/env bash
# Runs the tests: first the crates' own, then the scenarios against the built binary.
# Usage: test.sh [unit|scenarios]
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-all}
start=$(date +%s)
if [ "$(id -u)" != 0 ]; then
  echo "test: not root: tests that make namespaces and mounts will say that they are skipped" >&2
fi

if [ "$what" != scenarios ]; then
  cargo test --workspace --exclude tests --quiet
  echo "test: the crates' own tests took $((($(date +%s) - start))) s"
fi
if [ "$what" != unit ]; then
  scripts/clients.sh out/bin
  tests/images/build.sh out/images
  cargo build --package orlop
  RUST_BACKTRACE=0 RUST_LIB_BACKTRACE=0 ORLOP_TEST_BINARY="${CARGO_TARGET_DIR:-$PWD/target}/debug/orlop" \
  ORLOP_TEST_IMAGES="$PWD/out/images" \
    cargo test --package tests -- --nocapture --test-threads=2
fi
echo "test: all of it took $((($(date +%s) - start) / 60)) min $((($(date +%s) - start) % 60)) s"
