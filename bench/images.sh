#!/bin/sh
# Makes the images that only the benchmark needs, from Debian's packages, as OCI archives:
#
#   OUT/pause.tar  localhost/pause:1  sleeps for ever; what a runtime that needs a pause process runs in it
#   OUT/large.tar  localhost/large:1  about 35000 files and directories, 460 MB, in eight layers, a package each
#
# Needs apt (the packages are downloaded once and kept in OUT/cache), tar, gzip and sha256sum. An archive
# is made anew only when this script or a package is newer.
set -eu
umask 022
export LC_ALL=C

out=${1:?usage: images.sh OUT}
script=$(readlink -f "$0")
mkdir -p "$out/cache"
out=$(readlink -f "$out")
cache=$out/cache
arch=$(dpkg --print-architecture)
large='perl-modules-5.36 git vim-runtime linux-libc-dev python3-sympy gcc-12 golang-1.19-src libboost1.74-dev'

work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM

# Downloads packages that are not in the cache yet.
fetch() {
    missing=
    for package; do
        set -- "$cache/${package}"_*.deb
        [ -e "$1" ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    echo "bench: downloading$missing"
    # shellcheck disable=SC2086
    (cd "$cache" && apt-get -o APT::Sandbox::User=root -qq download $missing) || {
        apt-get -qq update
        # shellcheck disable=SC2086
        (cd "$cache" && apt-get -o APT::Sandbox::User=root -qq download $missing)
    } || {
        echo "bench: cannot download$missing" >&2
        exit 1
    }
}

# fresh NAME PACKAGE...: whether an archive is younger than this script and its packages.
fresh() {
    archive=$out/$1.tar
    shift
    [ -e "$archive" ] && [ "$archive" -nt "$script" ] || return 1
    for package; do
        set -- "$cache/${package}"_*.deb
        [ -e "$1" ] && [ "$archive" -nt "$1" ] || return 1
    done
}

digest() {
    sha256sum "$1" | cut -d' ' -f1
}

# blob FILE: moves a file among the image's blobs and prints its descriptor's digest and size.
blob() {
    sum=$(digest "$1")
    printf '"digest":"sha256:%s","size":%s' "$sum" "$(stat -c %s "$1")"
    mv "$1" "$work/image/blobs/sha256/$sum"
}

start() {
    rm -rf "$work/image"
    mkdir -p "$work/image/blobs/sha256"
    : >"$work/diff_ids"
    : >"$work/layers"
}

# layer: adds $work/layer.tar to the image as its next layer.
layer() {
    echo "\"sha256:$(digest "$work/layer.tar")\"" >>"$work/diff_ids"
    gzip -n -6 -f "$work/layer.tar"
    echo "{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",$(blob "$work/layer.tar.gz")}" >>"$work/layers"
}

# finish NAME CONFIG: completes the image; CONFIG is the inside of the `config` object.
finish() {
    kind=application/vnd.oci.image
    printf %s "{\"created\":\"1970-01-01T00:00:00Z\",\"architecture\":\"$arch\",\"os\":\"linux\",\"config\":{$2},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[$(paste -sd, "$work/diff_ids")]}}" >"$work/config"
    printf %s "{\"schemaVersion\":2,\"mediaType\":\"$kind.manifest.v1+json\",\"config\":{\"mediaType\":\"$kind.config.v1+json\",$(blob "$work/config")},\"layers\":[$(paste -sd, "$work/layers")]}" >"$work/manifest"
    printf %s '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci-layout"
    names="\"org.opencontainers.image.ref.name\":\"localhost/$1:1\",\"io.containerd.image.name\":\"localhost/$1:1\""
    printf %s "{\"schemaVersion\":2,\"mediaType\":\"$kind.index.v1+json\",\"manifests\":[{\"mediaType\":\"$kind.manifest.v1+json\",$(blob "$work/manifest"),\"annotations\":{$names}}]}" >"$work/image/index.json"
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work/image" -cf "$out/.$1.tar" oci-layout index.json blobs
    mv "$out/.$1.tar" "$out/$1.tar"
    echo "$out/$1.tar: localhost/$1:1, $(stat -c %s "$out/$1.tar") bytes"
}

if ! fresh pause busybox-static; then
    fetch busybox-static
    start
    dpkg-deb --fsys-tarfile "$cache"/busybox-static_*.deb | tar -x -C "$work" ./bin/busybox
    tar --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work" -cf "$work/layer.tar" ./bin
    layer
    finish pause '"Entrypoint":["/bin/busybox","sleep","2147483647"]'
fi

# shellcheck disable=SC2086
if ! fresh large $large; then
    # shellcheck disable=SC2086
    fetch $large
    start
    for package in $large; do
        dpkg-deb --fsys-tarfile "$cache/${package}"_*.deb >"$work/layer.tar"
        layer
    done
    finish large '"Cmd":["perl"]'
fi
