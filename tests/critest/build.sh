#!/bin/sh
# Makes all that critest (cri-tools' validation suite) needs to run without the internet, in one directory:
#
#   OUT/critest      the test program, with the digest of our test-image-digest in place of the published one
#   OUT/registry/    the storage of a docker-registry with every image that it asks for
#   OUT/run.sh       runs it all on a machine of its own (a virtual one)
#   OUT/certs.d/     hosts.toml files that send all registries to 127.0.0.1:5000
#
# Needs Go, gcc, apt, tar, gzip and sha256sum; root, for the files' owners. CACHE keeps the packages.
# What is there is made anew only when these scripts or the pinned version changed.
set -eu
umask 022
export LC_ALL=C

out=${1:?usage: build.sh OUT CACHE}
cache=${2:?usage: build.sh OUT CACHE}
here=$(dirname "$(readlink -f "$0")")
mkdir -p "$out" "$cache"
out=$(readlink -f "$out")
cache=$(readlink -f "$cache")
arch=$(dpkg --print-architecture)
me=critest/build.sh
. "$here/../images/lib.sh"

[ "$(id -u)" = 0 ] || fail "needs root, so that files in the images have their owners"
stamp=$(cat "$here/build.sh" "$here/images.sh" "$here/run.sh" "$here/../images/lib.sh" "$here/../clients/go.mod" | sha256sum)
[ "$(cat "$out/stamp" 2>/dev/null)" != "$stamp" ] || exit 0
command -v go >/dev/null || fail "critest is built from its Go module: install Go 1.21 or newer"

rm -rf "$out/stamp" "$out/registry" "$out/certs.d"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM

echo "$me: building critest (some minutes, once)"
(cd "$here/../clients" && go test -c -trimpath -buildvcs=false -ldflags='-s -w' -o "$work/critest" sigs.k8s.io/cri-tools/cmd/critest)

echo "$me: making its images"
. "$here/images.sh"

# The digest of one image stands in the program; ours has another one, of the same length.
published=9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf
[ "$(LC_ALL=C grep -c "$published" "$work/critest")" != 0 ] || fail "critest no longer names $published: look what it asks for"
LC_ALL=C sed "s/$published/$digest_of_test_image/g" "$work/critest" >"$out/critest"
chmod 755 "$out/critest"
cp "$here/run.sh" "$out/run.sh"

for registry in registry.k8s.io gcr.io k8s.gcr.io public.ecr.aws; do
    mkdir -p "$out/certs.d/$registry"
    printf 'server = "http://127.0.0.1:5000"\n[host."http://127.0.0.1:5000"]\ncapabilities = ["pull", "resolve"]\n' \
        >"$out/certs.d/$registry/hosts.toml"
done
echo "$stamp" >"$out/stamp"
echo "$me: $out holds $(du -sh "$out" | cut -f1)"
