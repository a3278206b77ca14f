#!/usr/bin/env bash
# Puts kubectl and crictl into the directory named, unless they are on PATH: built from their Go modules.
# Usage: clients.sh DIR
set -euo pipefail

dir=$(realpath -m "${1:?name a directory}")
cd "$(dirname "$0")/../tests/clients"
wanted=()
command -v kubectl >/dev/null || wanted+=(./kubectl)
command -v crictl >/dev/null || wanted+=(sigs.k8s.io/cri-tools/cmd/crictl)
if [ ${#wanted[@]} -eq 0 ]; then exit 0; fi

if ! command -v go >/dev/null; then
  echo "clients: ${wanted[*]##*/} not found, and no Go to build them: install Go 1.21 or newer, or the clients" >&2
  exit 1
fi
echo "clients: building ${wanted[*]##*/} (a few minutes, once)"
mkdir -p "$dir"
go build -buildvcs=false -trimpath -ldflags='-s -w -X k8s.io/component-base/version.gitVersion=v1.36.0' -o "$dir/" "${wanted[@]}"
