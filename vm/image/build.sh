#!/usr/bin/env bash
# Makes a guest from Debian's packages: kernel, initramfs and root disk (nothing of Orlop's is in it).
# Usage: build.sh SUITE DIR CACHE   (needs root, mmdebstrap, e2fsprogs, kmod, cpio, openssh-client)
set -euo pipefail

here=$(dirname "$(realpath "$0")")
suite=${1:?name a release of Debian, the one that apt knows here}
out=$(realpath -m "${2:?name a directory}")
cache=$(realpath -m "${3:?name a directory for what is downloaded}")
[ "$(id -u)" = 0 ] || { echo "vm: making a Debian tree needs root" >&2; exit 1; }
mkdir -p "$out" "$cache"
cd "$out"

packages=$(sed '/^[#?]/d' "$here/packages" | paste -sd,)
for package in $(sed -n 's/^? *//p' "$here/packages"); do
  [ -z "$(apt-cache madison "$package")" ] || packages+=,$package
done

rm -rf tree kernel initramfs
[ -f key ] || ssh-keygen -q -t ed25519 -N '' -C vm -f key

image=$(apt-cache depends --important linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
[ -n "$image" ] || { echo "vm: apt does not know linux-image-cloud-amd64; run apt-get update" >&2; exit 1; }
if [ ! -f "$cache/$image.deb" ]; then
  echo "vm: fetching $image"
  rm -f "$cache"/*.deb
  (cd "$cache" && apt-get -o APT::Sandbox::User=root download -q "$image" && mv "$image"_*.deb "$image.deb")
fi
dpkg-deb -x "$cache/$image.deb" kernel
version=${image#linux-image-}
cp "kernel/boot/vmlinuz-$version" vmlinuz

echo "vm: making the Debian tree"
mmdebstrap --quiet --variant=minbase --include="$packages" --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' "$suite" tree
cp -a kernel/lib/modules tree/lib/
depmod -b tree "$version"

install -Dm 600 key.pub tree/root/.ssh/authorized_keys
install -Dm 755 "$here/init.sh" tree/sbin/plain-init
install -Dm 755 "$here/setup.sh" tree/sbin/vm-setup
echo guest > tree/etc/hostname
printf '127.0.0.1 localhost guest\n' > tree/etc/hosts
echo 'nameserver 10.0.2.3' > tree/etc/resolv.conf
printf '%s\n' 'UseDNS no' 'MaxSessions 200' 'MaxStartups 100' > tree/etc/ssh/sshd_config.d/vm.conf
# sshd's PAM session is slow under an emulated processor; the environment is set here instead.
echo 'UsePAM no' >> tree/etc/ssh/sshd_config.d/vm.conf
printf 'export PATH=/share/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nulimit -c unlimited\n' > tree/root/.bashrc
printf '%s\n' overlay bridge veth nf_tables nft_chain_nat br_netfilter > tree/etc/modules-load.d/vm.conf
printf '[Match]\nMACAddress=52:54:00:00:02:15\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' > tree/etc/systemd/network/vm.network
printf '[Unit]\nDescription=Disks and addresses of this guest\nBefore=ssh.service\n[Service]\nType=oneshot\nExecStart=/sbin/vm-setup\n[Install]\nWantedBy=multi-user.target\n' > tree/etc/systemd/system/vm-setup.service
printf '[Unit]\nDescription=Tells the serial console that commands can run\nAfter=ssh.service vm-setup.service\n[Service]\nType=oneshot\nStandardOutput=tty\nTTYPath=/dev/ttyS0\nExecStart=/bin/echo "guest: ready"\n[Install]\nWantedBy=multi-user.target\n' > tree/etc/systemd/system/vm-ready.service
mkdir -p tree/share tree/data tree/cores
for unit in systemd-networkd-wait-online systemd-timesyncd docker-registry apt-daily.timer apt-daily-upgrade.timer \
  fstrim.timer e2scrub_all.timer e2scrub_reap dpkg-db-backup.timer systemd-pstore; do
  case $unit in *.*) ;; *) unit=$unit.service ;; esac
  ln -sf /dev/null "tree/etc/systemd/system/$unit"
done
systemctl --root tree --quiet enable systemd-networkd.service ssh.service vm-setup.service vm-ready.service

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
init=/sbin/init
for word in $(/bin/busybox cat /proc/cmdline); do
  case $word in
    # Somebody only asks whether a guest gets as far as this.
    vm.probe) echo "vm: the probe is alive"; /bin/busybox poweroff -f ;;
    init=*) init=${word#init=} ;;
  esac
done
while read -r module; do /bin/busybox insmod "/modules/$module"; done < /modules/order
until [ -b /dev/vda ]; do /bin/busybox sleep 0.05; done
/bin/busybox mount -o noatime /dev/vda /new
/bin/busybox umount /proc
/bin/busybox mount --move /dev /new/dev
exec /bin/busybox switch_root /new "$init"
INIT
chmod +x initramfs/init
(cd initramfs && find . | cpio --quiet -o -H newc) > initramfs.cpio

echo "vm: making the disk"
rm -f disk.ext4
mke2fs -q -t ext4 -d tree -L root disk.ext4 8G
rm -rf tree kernel initramfs
touch complete
echo "vm: ready in $out"
