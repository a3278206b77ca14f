#!/bin/busybox sh
# The first process of a guest without systemd: mounts, network, sshd; then it reaps until told to end.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
ln -sfn /proc/self/fd /dev/fd
for n in 0:stdin 1:stdout 2:stderr; do ln -sfn "/proc/self/fd/${n%:*}" "/dev/${n#*:}"; done
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
modprobe -a virtio_net overlay bridge veth nf_tables nft_chain_nat br_netfilter
hostname guest
ip link set lo up
for link in /sys/class/net/e*; do
  [ "$(cat "$link/address")" = 52:54:00:00:02:15 ] || continue
  ip addr add 10.0.2.15/24 dev "${link##*/}"
  ip link set "${link##*/}" up
done
ip route add default via 10.0.2.2
/sbin/vm-setup
mkdir -p /run/sshd
/usr/sbin/sshd
echo "guest: ready"
# PID 1 gets only signals that it has handlers for. SysRq ends a guest without systemd.
trap 'sync; echo b > /proc/sysrq-trigger' INT TERM
trap 'sync; echo o > /proc/sysrq-trigger' USR2
while :; do sleep 3600 & wait; done
