#!/usr/bin/env bash
# Makes a guest from Debian's packages: kernel, initramfs and root disk (systemd, sshd, nftables; nothing of Orlop).
# Usage: build.sh DIR      (needs root, mmdebstrap, e2fsprogs, kmod, cpio, openssh-client)
set -euo pipefail

here=$(dirname "$(realpath "$0")")
out=$(realpath -m "${1:?name a directory}")
[ "$(id -u)" = 0 ] || { echo "vm: making a Debian tree needs root" >&2; exit 1; }
mkdir -p "$out"
cd "$out"

suite=bookworm
packages=systemd-sysv,udev,kmod,iproute2,nftables,procps,openssh-server,ca-certificates,busybox-static,curl

rm -rf tree kernel initramfs
[ -f key ] || ssh-keygen -q -t ed25519 -N '' -C vm -f key

echo "vm: fetching the kernel"
image=$(apt-cache depends --important linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
[ -f "$image.deb" ] || { apt-get download -q "$image"; mv "$image"_*.deb "$image.deb"; }
dpkg-deb -x "$image.deb" kernel
version=${image#linux-image-}
cp "kernel/boot/vmlinuz-$version" vmlinuz

echo "vm: making the Debian tree"
mmdebstrap --quiet --variant=minbase --include="$packages" --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' "$suite" tree
cp -a kernel/lib/modules tree/lib/
depmod -b tree "$version"

install -Dm 600 key.pub tree/root/.ssh/authorized_keys
install -Dm 755 "$here/init.sh" tree/sbin/plain-init
echo guest > tree/etc/hostname
printf '127.0.0.1 localhost guest\n' > tree/etc/hosts
echo 'nameserver 10.0.2.3' > tree/etc/resolv.conf
echo 'UseDNS no' > tree/etc/ssh/sshd_config.d/vm.conf
printf '%s\n' overlay bridge veth nf_tables nft_chain_nat br_netfilter > tree/etc/modules-load.d/vm.conf
printf '[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' > tree/etc/systemd/network/vm.network
ln -sf /dev/null tree/etc/systemd/system/systemd-networkd-wait-online.service
systemctl --root tree --quiet enable systemd-networkd.service ssh.service

echo "vm: making the initramfs"
mkdir -p initramfs/{bin,dev,proc,sys,new,modules}
cp tree/bin/busybox initramfs/bin/
modprobe -d tree -S "$version" --show-depends -a virtio_pci virtio_blk | awk '{ print $2 }' | awk '!seen[$0]++' |
  while read -r module; do
    cp "$module" initramfs/modules/
    basename "$module" >> initramfs/modules/order
  done
cat > initramfs/init <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
while read -r module; do /bin/busybox insmod "/modules/$module"; done < /modules/order
until [ -b /dev/vda ]; do /bin/busybox sleep 0.05; done
init=/sbin/init
for word in $(/bin/busybox cat /proc/cmdline); do case $word in init=*) init=${word#init=} ;; esac; done
/bin/busybox mount -o noatime /dev/vda /new
/bin/busybox umount /proc
/bin/busybox mount --move /dev /new/dev
exec /bin/busybox switch_root /new "$init"
INIT
chmod +x initramfs/init
(cd initramfs && find . | cpio --quiet -o -H newc) > initramfs.cpio

echo "vm: making the disk"
rm -f disk.ext4
mke2fs -q -t ext4 -d tree -L root disk.ext4 6G
rm -rf tree kernel initramfs
echo "vm: ready in $out"
