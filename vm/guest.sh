#!/usr/bin/env bash
# Runs one guest made by build.sh. Its disk changes are kept in DIR/run until the next `start`.
# Usage: guest.sh DIR start [systemd|plain] | resume [systemd|plain] | ssh COMMAND... | copy FILE... TARGET | reboot | stop
set -euo pipefail

dir=$(realpath "${1:?name the directory that build.sh made}")
verb=${2:?start, resume, ssh, copy, reboot or stop}
shift 2
run=$dir/run
port=${VM_SSH_PORT:-2222}
options=(-i "$dir/key" -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR
  -o ControlMaster=auto -o ControlPath="$run/ssh" -o ControlPersist=yes -o ConnectTimeout=10)

on_guest() { ssh "${options[@]}" -p "$port" root@127.0.0.1 "$@"; }

alive() { [ -f "$run/pid" ] && kill -0 "$(cat "$run/pid")" 2>/dev/null; }

wait_ready() {
  local deadline=$((SECONDS + 240))
  until on_guest true 2>/dev/null; do
    alive || { echo "vm: the guest ended; see $run/console" >&2; exit 1; }
    [ $SECONDS -lt $deadline ] || { echo "vm: no ssh after 240 s; see $run/console" >&2; exit 1; }
    sleep 0.5
  done
}

boot() {
  local init=/sbin/init
  [ "${1:-plain}" = systemd ] || init=/sbin/plain-init
  qemu-system-x86_64 -accel tcg,thread=multi -smp 2 -cpu max -m "${VM_MEMORY:-2048}" -nodefaults -display none \
    -kernel "$dir/vmlinuz" -initrd "$dir/initramfs.cpio" \
    -append "console=ttyS0 quiet panic=-1 init=$init" \
    -drive "file=$run/disk.qcow2,if=virtio,cache=unsafe" \
    -nic "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:$port-:22" -device virtio-rng-pci \
    -serial "file:$run/console" -monitor none -daemonize -pidfile "$run/pid"
  wait_ready
}

drop_connection() { ssh "${options[@]}" -O exit -p "$port" root@127.0.0.1 2>/dev/null || true; }

case $verb in
  start)
    if alive; then echo "vm: a guest runs already: stop it first" >&2; exit 1; fi
    rm -rf "$run" && mkdir -p "$run"
    qemu-img create -q -f qcow2 -F raw -b "$dir/disk.ext4" "$run/disk.qcow2"
    boot "$@"
    ;;
  resume)
    if alive; then echo "vm: a guest runs already: stop it first" >&2; exit 1; fi
    boot "$@"
    ;;
  ssh) on_guest "$@" ;;
  copy)
    target=${*: -1}
    scp -q -P "$port" "${options[@]}" "${@:1:$#-1}" "root@127.0.0.1:$target"
    ;;
  reboot)
    before=$(on_guest cat /proc/sys/kernel/random/boot_id)
    on_guest 'sync; systemctl reboot 2>/dev/null || kill -TERM 1' || true
    drop_connection
    deadline=$((SECONDS + 240))
    until after=$(on_guest cat /proc/sys/kernel/random/boot_id 2>/dev/null) && [ "$after" != "$before" ]; do
      drop_connection
      [ $SECONDS -lt $deadline ] || { echo "vm: not up again after 240 s" >&2; exit 1; }
      sleep 0.5
    done
    ;;
  stop)
    drop_connection
    if alive; then
      pid=$(cat "$run/pid")
      kill "$pid"
      while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    fi
    ;;
  *) echo "vm: $verb is not known" >&2; exit 2 ;;
esac
