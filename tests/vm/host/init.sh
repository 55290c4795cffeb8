#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# First process of the guest: makes its root of what the host shares by 9p, then runs /out/start there.
# Root = tmpfs over the tree `extra` over the host's own root, which stays read-only: programs that the
# host built run unchanged, and nothing the guest writes outside /out reaches the host.
b=/bin/busybox
share="version=9p2000.L,trans=virtio,msize=512000"
$b mount -t proc p /proc
$b mount -t sysfs s /sys
$b mount -t devtmpfs d /dev
for module in $($b cat /modules/order); do $b insmod "/modules/$module"; done
$b stty -F /dev/ttyS1 -echo -onlcr

# The memory of the guest is saved here, before anything of the host is mounted. A guest that goes on
# from such an image is told the time; the host repeats it, for input before that is lost.
echo "sallyport-vm: snapshot point" >/dev/kmsg
exec 3</dev/ttyS1
while read -r word <&3; do
    case $word in T*E) word=${word#T}; $b date -s "@${word%E}" >/dev/null; break ;; esac
done
exec 3<&-

$b mkdir -p /host /extra /own /new
$b mount -t 9p -o $share,cache=loose,ro host /host
$b mount -t 9p -o $share,cache=loose,ro extra /extra
$b mount -t tmpfs t /own
$b mkdir /own/upper /own/work
$b mount -t overlay -o lowerdir=/extra:/host,upperdir=/own/upper,workdir=/own/work o /new
$b mkdir -p /new/out /new/run /new/lib/modules
$b mount -t 9p -o $share,cache=none out /new/out
modules=$($b cat /new/out/modules)
$b rm -f "/new/lib/modules/$($b uname -r)"
$b ln -s "$modules" "/new/lib/modules/$($b uname -r)"
for folder in proc sys dev; do $b mount --move /$folder /new/$folder; done
$b mkdir -p /new/dev/pts /new/dev/shm
$b mount -t devpts -o ptmxmode=666 d /new/dev/pts
for folder in run dev/shm; do $b mount -t tmpfs t /new/$folder; done
$b mount -t bpf b /new/sys/fs/bpf
$b mount -t tracefs t /new/sys/kernel/tracing
$b mount -t cgroup2 c /new/sys/fs/cgroup
exec $b switch_root /new /usr/bin/busybox sh /out/start
