#!/bin/sh
# Makes the images of the examples and tests from Debian's packages, as OCI archives:
#
#   OUT/busybox.tar  localhost/busybox:1  a shell, wget, nc, tar and the like
#   OUT/hello.tar    localhost/hello:1    a web server on port 8080 that serves /srv/www
#   OUT/nginx.tar    localhost/nginx:1    nginx on port 80 that serves /var/www/html
#
# Needs apt (the packages are downloaded once and kept in OUT/cache), tar, gzip and sha256sum; root, for
# the files' owners. An archive is made anew only when this script or a package is newer.
set -eu
umask 022
export LC_ALL=C

out=${1:?usage: build.sh OUT}
script=$(readlink -f "$0")
mkdir -p "$out/cache"
out=$(readlink -f "$out")
cache=$out/cache
arch=$(dpkg --print-architecture)

me=build.sh
# shellcheck source=lib.sh
. "${script%/*}/lib.sh"

[ "$(id -u)" = 0 ] || fail "needs root, so that files in the images have their owners"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM

# The tree that every image starts with.
base() {
    tree=$1
    unpack "$tree" busybox-static
    "$tree/usr/bin/busybox" --list | while read -r applet; do
        [ -e "$tree/usr/bin/$applet" ] || ln -s busybox "$tree/usr/bin/$applet"
    done
    skeleton "$tree"
}

# layer IMAGE TREE: adds a tree to an image as its next layer.
layer() {
    image=$work/archive-$1
    mkdir -p "$image/blobs/sha256"
    pack "$2"
    mv "$work/layer.tar.gz" "$image/blobs/sha256/$blob"
    echo "\"sha256:$diff_id\"" >>"$image.diff_ids"
    echo "{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:$blob\",\"size\":$size}" \
        >>"$image.layers"
}

# image NAME CONFIG: completes an image; CONFIG is the inside of the `config` object.
image() {
    image=$work/archive-$1
    name=localhost/$1:1
    config="{\"created\":\"1970-01-01T00:00:00Z\",\"architecture\":\"$arch\",\"os\":\"linux\",\"config\":{$2},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[$(paste -sd, "$image.diff_ids")]}}"
    printf %s "$config" >"$work/config"
    config=$(digest "$work/config")
    config_size=$(stat -c %s "$work/config")
    mv "$work/config" "$image/blobs/sha256/$config"
    printf %s "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$config\",\"size\":$config_size},\"layers\":[$(paste -sd, "$image.layers")]}" >"$work/manifest"
    manifest=$(digest "$work/manifest")
    manifest_size=$(stat -c %s "$work/manifest")
    mv "$work/manifest" "$image/blobs/sha256/$manifest"
    printf %s '{"imageLayoutVersion":"1.0.0"}' >"$image/oci-layout"
    printf %s "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:$manifest\",\"size\":$manifest_size,\"annotations\":{\"org.opencontainers.image.ref.name\":\"$name\",\"io.containerd.image.name\":\"$name\"}}]}" >"$image/index.json"
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$image" -cf "$out/.$1.tar" oci-layout index.json blobs
    mv "$out/.$1.tar" "$out/$1.tar"
    echo "$out/$1.tar: $name, $(stat -c %s "$out/$1.tar") bytes"
}

# fresh NAME PACKAGE...: whether an archive is younger than this script and its packages.
fresh() {
    archive=$out/$1.tar
    shift
    [ -e "$archive" ] && [ "$archive" -nt "$script" ] && [ "$archive" -nt "${script%/*}/lib.sh" ] || return 1
    for package; do
        set -- "$cache/${package}"_*.deb
        [ -e "$1" ] && [ "$archive" -nt "$1" ] || return 1
    done
}

environment='"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"'

if ! fresh busybox busybox-static || ! fresh hello busybox-static; then
    fetch busybox-static
    base "$work/base"
    layer busybox "$work/base"
    image busybox "\"Env\":[$environment],\"Cmd\":[\"sh\"]"

    mkdir -p "$work/pages/srv/www"
    echo 'Hello from an image.' >"$work/pages/srv/www/index.html"
    layer hello "$work/base"
    layer hello "$work/pages"
    image hello "\"Env\":[$environment],\"Entrypoint\":[\"busybox\",\"httpd\"],\"Cmd\":[\"-f\",\"-v\",\"-p\",\"8080\",\"-h\",\"/srv/www\"],\"ExposedPorts\":{\"8080/tcp\":{}},\"WorkingDir\":\"/srv/www\""
fi

if ! fresh nginx busybox-static nginx nginx-common libc6; then
    # Of what nginx's packages need, debconf only asks questions.
    libraries=$(closure nginx | grep -vx -e debconf -e nginx -e nginx-common)
    [ -n "$libraries" ] || fail "apt does not know nginx; run apt-get update"
    # shellcheck disable=SC2086
    fetch busybox-static nginx nginx-common $libraries

    [ -e "$work/base" ] || base "$work/base"
    mkdir "$work/libraries"
    # shellcheck disable=SC2086
    unpack "$work/libraries" $libraries
    drop_links "$work/libraries"
    rm -rf "$work/libraries/etc/init.d" "$work/libraries/usr/share/gdb"

    unpack "$work/nginx" nginx nginx-common
    drop_links "$work/nginx"
    rm -rf "$work/nginx/etc/init.d" "$work/nginx/etc/ufw" "$work/nginx/etc/logrotate.d"
    mkdir -p "$work/nginx/etc/nginx/conf.d" "$work/nginx/var/lib/nginx" "$work/nginx/var/log/nginx" \
        "$work/nginx/var/www/html" "$work/nginx/etc/nginx/modules-enabled" \
        "$work/nginx/etc/nginx/sites-enabled"
    ln -s /dev/stdout "$work/nginx/var/log/nginx/access.log"
    ln -s /dev/stderr "$work/nginx/var/log/nginx/error.log"
    cat >"$work/nginx/etc/nginx/conf.d/default.conf" <<'EOF'
server {
    listen 80 default_server;
    server_name _;
    root /var/www/html;
    index index.html;
}
EOF
    mkdir -p "$work/image-pages/var/www/html"
    echo 'nginx from an image.' >"$work/image-pages/var/www/html/index.html"
    layer nginx "$work/base"
    layer nginx "$work/libraries"
    layer nginx "$work/nginx"
    layer nginx "$work/image-pages"
    image nginx "\"Env\":[$environment],\"Entrypoint\":[\"nginx\"],\"Cmd\":[\"-g\",\"daemon off;\"],\"ExposedPorts\":{\"80/tcp\":{}},\"StopSignal\":\"SIGQUIT\""
fi
