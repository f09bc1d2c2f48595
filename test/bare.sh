#!/bin/bash
# Proves that a fresh clone works on a machine that has nothing: makes a minimal Debian in a folder,
# clones this checkout's HEAD into it, and runs there what the README says.
#
#   test/bare.sh [-k] [SUITE] [COMMAND…]
#
#   -k       keep the folder, and say where it is
#   SUITE    bookworm (default) or trixie
#   COMMAND  what to run in the clone; by default "make demo" and then "make test"
#
# It needs root and debootstrap. The mirror and the trust store are those of this machine. Guests, taps
# and namespaces are made for real: the chroot has the kernel, /dev and the network of this machine.
set -euo pipefail

keep=
if [ "${1:-}" = -k ]; then keep=1; shift; fi
suite=${1:-bookworm}
[ $# = 0 ] || shift
[ "$(id -u)" = 0 ] || { echo "bare.sh: needs root, for debootstrap, chroot and mounts" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "bare.sh: needs debootstrap: apt-get install debootstrap" >&2; exit 1; }

repo=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
work=$(mktemp -d /var/tmp/pinnace-bare.XXXXXX)
root=$work/root
clean_up() {
	local pid mnt
	# Whatever still runs in the chroot was started by it.
	for pid in /proc/[0-9]*; do
		if [ "$(readlink "$pid/root" 2>/dev/null)" = "$root" ]; then
			echo "bare.sh: left running: $(tr '\0' ' ' <"$pid/cmdline" 2>/dev/null)" >&2
			kill -9 "${pid#/proc/}" 2>/dev/null || true
		fi
	done
	for mnt in $(awk -v r="$root/" 'index($2, r) == 1 { print $2 }' /proc/mounts | sort -r); do
		umount "$mnt" || umount -l "$mnt" || true
	done
	if [ -n "$keep" ]; then
		echo "bare.sh: kept $root (its mounts are gone)" >&2
	else
		rm -rf --one-file-system "$work"
	fi
}
trap clean_up EXIT

site=$(apt-get indextargets --format '$(SITE) $(LABEL)' 'Created-By: Packages' | awk '$2 == "Debian" { print $1; exit }')
[ -n "$site" ] || { echo "bare.sh: apt has no Debian mirror set up" >&2; exit 1; }
started=$(date +%s)
echo "bare.sh: debootstrap --variant=minbase $suite"
debootstrap --variant=minbase "$suite" "$root" "$site" >"$work/debootstrap.log" 2>&1 || {
	tail -5 "$work/debootstrap.log" >&2
	exit 1
}
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys" && mount --make-rslave "$root/sys"
mount --rbind /dev "$root/dev" && mount --make-rslave "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm" 2>/dev/null || true
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
# A machine behind an inspecting proxy trusts more than Debian does.
if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
	mkdir -p "$root/usr/local/share/ca-certificates"
	cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
fi
in_chroot() {
	chroot "$root" /usr/bin/env -i HOME=/root TERM=dumb \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		${GOPROXY:+GOPROXY="$GOPROXY"} /bin/sh -c "$1"
}
before=$(in_chroot 'command -v go make qemu-system-x86_64 buildah' || true)
[ -z "$before" ] || { echo "bare.sh: not bare: $before" >&2; exit 1; }

git clone -q --bare "$repo" "$root/root/origin.git"
in_chroot 'apt-get -qq update && apt-get -qq -y --no-install-recommends install git make >/dev/null 2>&1'
in_chroot 'git clone -q /root/origin.git /root/pinnace'
echo "bare.sh: $suite is up after $(($(date +%s) - started)) s, at $(git -C "$repo" rev-parse --short HEAD)"

if [ $# = 0 ]; then set -- "make demo" "make test"; fi
for command in "$@"; do
	t=$(date +%s)
	echo "bare.sh: \$ $command"
	in_chroot "cd /root/pinnace && $command"
	echo "bare.sh: \"$command\" passed in $(($(date +%s) - t)) s"
done
