#!/bin/sh
# Pushes an OCI archive to a registry over plain HTTP: push.sh ARCHIVE HOST:PORT/REPOSITORY:TAG
set -eu

archive=${1:?usage: push.sh ARCHIVE HOST:PORT/REPOSITORY:TAG}
reference=${2:?usage: push.sh ARCHIVE HOST:PORT/REPOSITORY:TAG}
host=${reference%%/*}
name=${reference#*/}
tag=${name##*:}
repository=${name%:*}
url=http://$host/v2/$repository

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
tar -xf "$archive" -C "$work"

manifest=$(grep -o '"digest":"sha256:[0-9a-f]*"' "$work/index.json" | head -n 1 | grep -o '[0-9a-f]\{64\}')
for file in "$work"/blobs/sha256/*; do
    blob=${file##*/}
    [ "$blob" != "$manifest" ] || continue
    curl -fsS -o /dev/null -I "$url/blobs/sha256:$blob" 2>/dev/null && continue
    location=$(curl -fsS -X POST -D - -o /dev/null "$url/blobs/uploads/" |
        tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    case $location in
    /*) location=http://$host$location ;;
    esac
    case $location in
    *\?*) location="$location&digest=sha256:$blob" ;;
    *) location="$location?digest=sha256:$blob" ;;
    esac
    curl -fsS -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$file" "$location"
done
curl -fsS -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' \
    --data-binary "@$work/blobs/sha256/$manifest" "$url/manifests/$tag"
