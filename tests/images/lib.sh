# Shared by the scripts that make images from Debian's packages. They set `me` (their name), `cache` (where packages are
# kept) and `work` (a directory that is gone afterwards).
# shellcheck shell=sh

fail() {
    echo "$me: $*" >&2
    exit 1
}

# Downloads packages that are not in the cache yet.
fetch() {
    missing=
    for package; do
        set -- "$cache/${package}"_*.deb
        [ -e "$1" ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086
    (cd "$cache" && apt-get -o APT::Sandbox::User=root -qq download $missing) || {
        apt-get -qq update
        # shellcheck disable=SC2086
        (cd "$cache" && apt-get -o APT::Sandbox::User=root -qq download $missing)
    } || fail "cannot download$missing"
}

# Names the packages that one needs, itself included: what apt would install on a machine with nothing.
closure() {
    apt-get -o Dir::State::status=/dev/null --simulate install --no-install-recommends "$1" |
        awk '$1 == "Inst" { print $2 }'
}

# Unpacks packages into a directory whose /bin, /lib and so on are links into /usr.
unpack() {
    tree=$1
    shift
    mkdir -p "$tree/usr/bin" "$tree/usr/sbin" "$tree/usr/lib" "$tree/usr/lib64"
    for dir in bin sbin lib lib64; do
        [ -e "$tree/$dir" ] || ln -s "usr/$dir" "$tree/$dir"
    done
    for package; do
        set -- "$cache/${package}"_*.deb
        dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -p -C "$tree"
    done
    rm -rf "$tree/usr/share/doc" "$tree/usr/share/man" "$tree/usr/share/locale" "$tree/usr/share/lintian" \
        "$tree/usr/share/bash-completion" "$tree/usr/lib/systemd" "$tree/usr/share/doc-base"
}

# For a layer above the base, which has the links already.
drop_links() {
    rm "$1/bin" "$1/sbin" "$1/lib" "$1/lib64"
    find "$1" -mindepth 1 -type d -empty -delete
}

# The directories and files of a system that has nothing else.
skeleton() {
    tree=$1
    mkdir -p "$tree/etc" "$tree/root" "$tree/tmp" "$tree/run" "$tree/var/tmp" "$tree/var/log" \
        "$tree/dev" "$tree/proc" "$tree/sys" "$tree/home" "$tree/srv"
    ln -sfn ../run "$tree/var/run"
    chmod 700 "$tree/root"
    chmod 1777 "$tree/tmp" "$tree/var/tmp"
    cat >"$tree/etc/passwd" <<'EOF'
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
EOF
    cat >"$tree/etc/group" <<'EOF'
root:x:0:
www-data:x:33:
nogroup:x:65534:
EOF
    printf 'hosts: files dns\n' >"$tree/etc/nsswitch.conf"
}

digest() {
    sha256sum "$1" | cut -d' ' -f1
}

# Packs a tree as a layer: `$work/layer.tar.gz`, and its digests in `diff_id` and `blob`, its size in `size`.
pack() {
    tar --sort=name --mtime=@0 --numeric-owner --format=gnu -C "$1" -cf "$work/layer.tar" .
    diff_id=$(digest "$work/layer.tar")
    gzip -n -6 -f "$work/layer.tar"
    blob=$(digest "$work/layer.tar.gz")
    size=$(stat -c %s "$work/layer.tar.gz")
}
