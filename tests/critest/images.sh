# The images that critest asks for, written straight into the storage of a registry. Read by build.sh.
#
# What the suite expects of them: applets of busybox are hard links, so that a mask over one leaves the others alone, and
# its shell looks at PATH (Debian's `busybox` does, `busybox-static` does not); `pgrep` and `ipcs` are there; `pause:3.9`
# has an id of its own; `test-image-digest` is a plain manifest, where the others are indexes of two platforms.
# shellcheck shell=sh

storage=$out/registry/docker/registry/v2
environment='"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]'
manifest_type=application/vnd.oci.image.manifest.v1+json
index_type=application/vnd.oci.image.index.v1+json

# store FILE: moves a file among the blobs; its digest in `blob`, its size in `size`.
store() {
    blob=$(digest "$1")
    size=$(stat -c %s "$1")
    mkdir -p "$storage/blobs/sha256/$(printf %.2s "$blob")/$blob"
    mv "$1" "$storage/blobs/sha256/$(printf %.2s "$blob")/$blob/data"
}

# link DIRECTORY DIGEST: a registry's way to say that a repository has a blob.
link() {
    mkdir -p "$1"
    printf 'sha256:%s' "$2" >"$1/link"
}

# layer NAME TREE: makes a layer that images can name.
layer() {
    pack "$2"
    store "$work/layer.tar.gz"
    echo "sha256:$diff_id" >"$work/$1.diff_id"
    echo "{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:$blob\",\"size\":$size}" \
        >"$work/$1.descriptor"
}

# manifest REPOSITORY ARCHITECTURE CONFIG LAYERS: stores the image for one platform; `blob` and `size` are its manifest's.
manifest() {
    repository=$storage/repositories/$1
    diff_ids= descriptors=
    for name in $4; do
        diff_ids=$diff_ids${diff_ids:+,}\"$(cat "$work/$name.diff_id")\"
        descriptors=$descriptors${descriptors:+,}$(cat "$work/$name.descriptor")
        link "$repository/_layers/sha256/$(sed 's/.*sha256:\([0-9a-f]*\).*/\1/' "$work/$name.descriptor")" \
            "$(sed 's/.*sha256:\([0-9a-f]*\).*/\1/' "$work/$name.descriptor")"
    done
    printf %s "{\"created\":\"1970-01-01T00:00:00Z\",\"architecture\":\"$2\",\"os\":\"linux\",\"config\":{$environment,$3},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[$diff_ids]}}" >"$work/config"
    store "$work/config"
    link "$repository/_layers/sha256/$blob" "$blob"
    printf %s "{\"schemaVersion\":2,\"mediaType\":\"$manifest_type\",\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$blob\",\"size\":$size},\"layers\":[$descriptors]}" >"$work/manifest"
    store "$work/manifest"
    link "$repository/_manifests/revisions/sha256/$blob" "$blob"
}

# tag REPOSITORY TAGS: names what `blob` is.
tag() {
    for name in $2; do
        link "$storage/repositories/$1/_manifests/tags/$name/current" "$blob"
        link "$storage/repositories/$1/_manifests/tags/$name/index/sha256/$blob" "$blob"
    done
}

# image REPOSITORY TAGS CONFIG LAYERS: an index of this machine's platform and another one's.
image() {
    other=arm64
    [ "$arch" != arm64 ] || other=amd64
    manifest "$1" "$other" "$3" "$4"
    entries="{\"mediaType\":\"$manifest_type\",\"digest\":\"sha256:$blob\",\"size\":$size,\"platform\":{\"architecture\":\"$other\",\"os\":\"linux\"}}"
    manifest "$1" "$arch" "$3" "$4"
    entries="$entries,{\"mediaType\":\"$manifest_type\",\"digest\":\"sha256:$blob\",\"size\":$size,\"platform\":{\"architecture\":\"$arch\",\"os\":\"linux\"}}"
    printf %s "{\"schemaVersion\":2,\"mediaType\":\"$index_type\",\"manifests\":[$entries]}" >"$work/index"
    store "$work/index"
    link "$storage/repositories/$1/_manifests/revisions/sha256/$blob" "$blob"
    tag "$1" "$2"
}

# marked NAME: a layer with one empty file, so that an image differs from its siblings.
marked() {
    mkdir -p "$work/marked"
    : >"$work/marked/$1"
    layer "$1" "$work/marked"
    rm -r "$work/marked"
}

# --- the trees ---

needed=$(closure busybox)
# shellcheck disable=SC2086
fetch $needed
base=$work/base
# shellcheck disable=SC2086
unpack "$base" $needed
# Character sets and auditing are most of the C library, and nothing here uses them.
rm -rf "$base"/usr/lib/*/gconv "$base"/usr/lib/*/audit "$base/usr/share/initramfs-tools" "$base/etc/ld.so.conf.d"
skeleton "$base"
applets=$("$base/usr/bin/busybox" --list)
for applet in $applets; do
    [ -e "$base/usr/bin/$applet" ] || ln "$base/usr/bin/busybox" "$base/usr/bin/$applet"
done
cat >"$base/usr/bin/pgrep" <<'EOF'
#!/bin/sh
found=1
for dir in /proc/[0-9]*; do
    [ "${dir#/proc/}" != $$ ] || continue
    case $(cat "$dir/comm" 2>/dev/null) in
    *"$1"*) echo "${dir#/proc/}" && found=0 ;;
    esac
done
exit $found
EOF
cat >"$base/usr/bin/ipcs" <<'EOF'
#!/bin/sh
echo '------ Shared Memory Segments --------'
exec cat /proc/sysvipc/shm
EOF
chmod 755 "$base/usr/bin/pgrep" "$base/usr/bin/ipcs"
layer base "$base"

mkdir -p "$work/groups/etc"
cp "$base/etc/passwd" "$base/etc/group" "$work/groups/etc"
echo 'default-user:x:1000:1000::/home/default-user:/bin/sh' >>"$work/groups/etc/passwd"
printf 'default-user:x:1000:default-user\ngroup-defined-in-image:x:50000:default-user\n' >>"$work/groups/etc/group"
layer groups "$work/groups"

mkdir -p "$work/nnp"
cat >"$work/nnp.c" <<'EOF'
#include <stdio.h>
#include <unistd.h>
int main(void) { return printf("Effective uid: %d\n", (int)geteuid()) < 0; }
EOF
gcc -Os -static -s -o "$work/nnp/nnp" "$work/nnp.c"
chmod 4755 "$work/nnp/nnp"
layer nnp "$work/nnp"

libraries=
for package in $(closure nginx); do
    case " $(echo $needed) debconf nginx nginx-common " in
    *" $package "*) ;;
    *) libraries="$libraries $package" ;;
    esac
done
[ -n "$libraries" ] || fail "apt does not know nginx; run apt-get update"
# shellcheck disable=SC2086
fetch nginx nginx-common $libraries
# shellcheck disable=SC2086
unpack "$work/nginx" nginx nginx-common $libraries
drop_links "$work/nginx"
rm -rf "$work/nginx/etc/init.d" "$work/nginx/etc/ufw" "$work/nginx/etc/logrotate.d" "$work/nginx/usr/share/gdb"
mkdir -p "$work/nginx/etc/nginx" "$work/nginx/var/lib/nginx" "$work/nginx/var/log/nginx" "$work/nginx/srv/www"
echo 'nginx from an image.' >"$work/nginx/srv/www/index.html"
ln -s /dev/stderr "$work/nginx/var/log/nginx/error.log"
layer nginx "$work/nginx"
for port in 80 12003; do
    mkdir -p "$work/port/etc/nginx"
    cat >"$work/port/etc/nginx/nginx.conf" <<EOF
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 128; }
http {
    access_log /dev/stdout;
    server { listen $port; root /srv/www; index index.html; }
}
EOF
    layer "nginx-$port" "$work/port"
    rm -r "$work/port"
done

mkdir -p "$work/page/srv/www"
echo 'It works!' >"$work/page/srv/www/index.html"
layer page "$work/page"

# --- the images ---

shell='"Cmd":["sh"]'
nginx='"Cmd":["nginx","-g","daemon off;"],"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGTERM"'
e2e=e2e-test-images
staging=k8s-staging-cri-tools

image $e2e/busybox "1.29-2 latest" "$shell" base
image $e2e/nonewprivs 1.3 '"Entrypoint":["/nnp"]' "base nnp"
image $e2e/nginx 1.14-2 "$nginx" "base nginx nginx-80"
image $staging/hostnet-nginx-$arch latest "$nginx" "base nginx nginx-12003"
# One spec looks for the word httpd in the log.
image $e2e/httpd 2.4.39-4 '"Cmd":["sh","-c","echo httpd; exec httpd -f -p 80 -h /srv/www"]' "base page"
for version in 3.9 3.10 3.10.1; do
    marked "pause-$version"
    image pause "$version" '"Entrypoint":["sleep"],"Cmd":["infinity"],"User":"65535:65535"' "base pause-$version"
done
while read -r name user; do
    marked "user-$name"
    image "$staging/test-image-user-$name" latest "$shell,\"User\":\"$user\"" "base user-$name"
done <<'EOF'
uid 1002
username www-data
uid-group 1003:1004
username-group www-data:1004
EOF
image $staging/test-image-predefined-group latest "$shell,\"User\":\"1000\"" "base groups"
for name in test-image-1 test-image-2 test-image-3 test-image-latest; do
    marked $name
    image $staging/$name latest "$shell" "base $name"
done
marked same
image $staging/test-image-tags "1 2 3" "$shell" "base same"
marked tag
image $staging/test-image-tag "test all" "$shell" "base tag"
# For the benchmarks.
for name in 1 1-uclibc 1-glibc 1-musl 1.35.0-glibc; do
    marked "busybox-$name"
    image docker/library/busybox $name "$shell" "base busybox-$name"
done

marked digest
manifest $staging/test-image-digest "$arch" "$shell" "base digest"
tag $staging/test-image-digest latest
# shellcheck disable=SC2034
digest_of_test_image=$blob
