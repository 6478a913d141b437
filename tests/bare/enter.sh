#!/bin/sh
# Becomes a process of a bare machine: enter.sh ROOT STAGE UID SECONDS COMMAND...
#
# Runs as PID 1 of namespaces of its own (unshare --mount --pid --fork), and replaces itself with timeout(1), which
# reaps nobody but the command, as in many a container, and at whose end the kernel ends all that is left. The root's own files are read-only; /dev is what
# Debian has, /tmp is STAGE/tmp or, without it, a tmpfs, and STAGE/home, STAGE/run and STAGE/var-tmp are written to.
set -eu
root=$1 stage=$2 uid=$3 seconds=$4
shift 4

mount --make-rprivate /
mount --bind "$root" "$root"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/net" "$root/dev/pts" "$root/dev/shm"
while read -r name major minor; do
  mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done << 'NODES'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
net/tun 10 200
NODES
ln -s /proc/self/fd "$root/dev/fd"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t devpts -o newinstance,ptmxmode=666 pts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
if [ -d "$stage/tmp" ]; then
  mount --bind "$stage/tmp" "$root/tmp"
else
  mount -t tmpfs -o mode=1777 tmp "$root/tmp"
fi
mount --bind "$stage/run" "$root/run"
mount --bind "$stage/home" "$root/home"
mount --bind "$stage/var-tmp" "$root/var/tmp"
for file in /etc/resolv.conf /etc/hosts; do
  touch "$root$file"
  mount --bind "$file" "$root$file"
done
mount -o remount,bind,ro "$root"

cd "$root"
# A process that was merely chrooted may not make user namespaces.
pivot_root . mnt
umount -l /mnt
# The environment was made for this machine by whoever called.
cd "$HOME/outboard"
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all -- \
  timeout --signal=KILL "$seconds" "$@"
