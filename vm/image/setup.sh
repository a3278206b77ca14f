#!/bin/busybox sh
# What every guest needs beyond its init's own work: the attached disks by their serial numbers, swap, the
# address in the guests' common network, where core dumps go. Words `vm.…` of the kernel's command line say which.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

device() {
  for block in /sys/block/vd*; do
    [ "$(cat "$block/serial" 2>/dev/null)" = "$1" ] && echo "/dev/${block##*/}" && return
  done
  return 1
}

mkdir -p /cores
echo '/cores/core.%e.%p' > /proc/sys/kernel/core_pattern
share=$(device share) && mount -o ro "$share" /share
swap=$(device swap) && mkswap "$swap" > /dev/null && swapon "$swap"
if data=$(device data); then
  # By its path, as the shell has a tool of this name in it that makes another file system.
  blkid "$data" > /dev/null || /sbin/mke2fs -q -t ext4 -L data "$data"
  mount -o noatime "$data" /data
fi
for word in $(cat /proc/cmdline); do
  case $word in
    vm.name=*)
      hostname "${word#vm.name=}"
      echo "127.0.0.1 localhost ${word#vm.name=}" > /etc/hosts
      ;;
    vm.lan=*)
      for link in /sys/class/net/e*; do
        case $(cat "$link/address") in
          52:54:00:00:77:*)
            ip addr replace "${word#vm.lan=}" dev "${link##*/}"
            ip link set "${link##*/}" up
            ;;
        esac
      done
      ;;
  esac
done
:
