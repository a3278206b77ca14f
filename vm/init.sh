#!/bin/busybox sh
# The first process of a guest without systemd: mounts, network, sshd; then it reaps until told to end.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sfn /proc/self/fd /dev/fd
for n in 0:stdin 1:stdout 2:stderr; do ln -sfn "/proc/self/fd/${n%:*}" "/dev/${n#*:}"; done
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue 2>/dev/null
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
modprobe -a virtio_net overlay bridge veth nf_tables nft_chain_nat br_netfilter
hostname guest
ip link set lo up
device=$(ls /sys/class/net | grep '^e' | head -n 1)
ip addr add 10.0.2.15/24 dev "$device"
ip link set "$device" up
ip route add default via 10.0.2.2
mkdir -p /run/sshd
/usr/sbin/sshd
echo "guest: ready"
# PID 1 gets only signals that it has handlers for. SysRq ends a guest without systemd.
trap 'sync; echo b > /proc/sysrq-trigger' INT TERM
trap 'sync; echo o > /proc/sysrq-trigger' USR2
while :; do sleep 3600 & wait; done
