#!/usr/bin/env bash
# Installs what building, running or testing needs and is missing: Debian packages, and Rust by rustup.
# Usage: setup.sh run|test|lint
set -euo pipefail

purpose=${1:?say run, test or lint}
build=(build-essential curl ca-certificates mold)
# nft for host ports and masquerading; busybox-static becomes the example's image.
run=(nftables busybox-static)
# crun and runc make containers by handler, and are what our own launcher is compared with.
test=(git iproute2 jq docker-registry procps util-linux socat crun runc)
# What orlop-libcontainer is linked with.
test+=(libseccomp-dev)
# The guests of the tests in vm/: QEMU, and what makes their image.
test+=(qemu-system-x86 qemu-utils mmdebstrap e2fsprogs cpio kmod openssh-client secilc)

packages=("${build[@]}" "${run[@]}")
if [ "$purpose" != run ]; then packages+=("${test[@]}"); fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "setup: missing Debian packages: ${missing[*]}" >&2
    echo "setup: run this as root, or: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "setup: installing ${missing[*]}"
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  # A package's service must not start: the tests start what they need themselves.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
    trap 'rm -f $policy' EXIT
  fi
  if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "setup: apt-get failed; the whole of its output is in $log" >&2
    exit 1
  fi
  rm -f "$log"
fi

export PATH="$HOME/.cargo/bin:$PATH"
if ! command -v cargo >/dev/null; then
  echo "setup: installing Rust by rustup"
  init=$(mktemp -d)/rustup-init
  from=https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu/rustup-init
  curl --proto '=https' --tlsv1.2 -sSf -o "$init" "$from"
  echo "$(curl --proto '=https' --tlsv1.2 -sSf "$from.sha256" | cut -d' ' -f1)  $init" | sha256sum --quiet -c
  chmod +x "$init" && "$init" -q -y --profile minimal -c clippy,rustfmt
  rm -r "$(dirname "$init")"
fi

# Only `make lint` and CI need it.
if [ "$purpose" = lint ] && ! cargo deny --version >/dev/null 2>&1; then
  echo "setup: building cargo-deny (a few minutes, once)"
  cargo install --quiet --locked --version 0.20.2 cargo-deny
fi
