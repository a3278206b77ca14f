# What a container may do where the kernel has AppArmor and its pod asks for no other profile.
# It is one more line behind namespaces, capabilities, seccomp and read-only mounts: it takes from a container's root
# what would change the node, even when one of those is left away.

profile orlop-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,

  # Whoever runs containers may signal them and look at them; containers only each other.
  signal (receive) peer=unconfined,
  signal (receive) peer={runc,crun,orlop},
  signal (send, receive) peer=orlop-default,
  ptrace (tracedby, readby) peer=unconfined,
  ptrace (trace, read, tracedby, readby) peer=orlop-default,

  # No mounts: a new procfs or sysfs somewhere else would not be covered by what follows.
  deny mount,

  # Settings and controls of the whole machine. Left are those of a pod's own namespaces: net, fs/mqueue,
  # kernel/msg*, kernel/sem, kernel/shm*.
  deny /proc/[a-z]* wkl,
  deny /proc/{acpi,asound,bus,driver,fs,irq,scsi,tty}/** wkl,
  deny /proc/sys/[^fkn]** wkl,
  deny /proc/sys/fs/[^m]** wkl,
  deny /proc/sys/kernel/[^ms]** wkl,
  deny /proc/sys/kernel/m[^s]** wkl,
  deny /proc/sys/kernel/s[^eh]** wkl,
  deny /proc/sys/kernel/sec** wkl,
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,

  # Devices, firmware, modules and the security modules themselves. Left are cgroups.
  deny /sys/[^f]** wkl,
  deny /sys/fs/[^c]** wkl,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}
