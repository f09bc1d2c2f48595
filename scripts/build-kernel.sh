#!/bin/sh
# Builds a guest kernel for Pinnace from Debian's kernel source, with what guests need built in and nothing else.
#
#   scripts/build-kernel.sh [--series 6.12] [--again] [DATA_DIR]        DATA_DIR defaults to /var/lib/pinnace
#
# It boots in about half the time of Debian's own kernel, which scripts/get-kernel.sh fetches, and needs less memory.
# Debian's stays what VMs boot until somebody says otherwise, with: pinnace kernel use RELEASE. Whoever builds a
# kernel has to build it again when Debian publishes a fix; this script says so when there is a newer source.
#
# Nothing is installed: the source is a Debian package, downloaded with a private source list, state and cache, and
# built in a directory that is removed at the end. It takes 5 to 10 minutes on two cores, 3 GB of disk in TMPDIR, and
# gcc, make, flex, bison, bc, lz4, xz and libelf's headers (scripts/deps.sh kernel installs what is missing).
#
# What stays is DATA_DIR/kernels/<version>-pinnace/: vmlinuz, config, and origin and copyright, which say what it was
# made of. NICE (default 10) is how far the build makes way for others, JOBS how many compilers run at once.
set -eu
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
. "$here/private-apt.sh"

say() { printf '%s\n' "build-kernel: $*"; }
die() {
	printf '%s\n' "build-kernel: error: $1" >&2
	[ $# -lt 2 ] || printf '%s\n' "build-kernel: hint: $2" >&2
	exit 1
}

series=6.12
again=no
data=/var/lib/pinnace
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help) sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"; exit 0 ;;
	--series) [ $# -gt 1 ] || die "--series needs a number such as 6.12"; series=$2; shift ;;
	--again) again=yes ;;
	-*) die "unknown option $1" "usage: $0 [--series 6.12] [--again] [DATA_DIR]" ;;
	*) data=$1 ;;
	esac
	shift
done
kernels=$data/kernels

for tool in apt-get apt-cache dpkg dpkg-deb awk; do
	command -v "$tool" >/dev/null || die "$tool is missing; this script needs a Debian system"
done
arch=$(dpkg --print-architecture)
fragment=$here/kernel-$arch.config
[ -f "$fragment" ] || die "there is no configuration for $arch ($fragment)" "use Debian's kernel: scripts/get-kernel.sh"
missing=
for tool in gcc make flex bison bc lz4 xz perl; do
	command -v "$tool" >/dev/null || missing="$missing $tool"
done
echo '#include <gelf.h>' | gcc -E - >/dev/null 2>&1 || missing="$missing libelf-dev"
[ -z "$missing" ] || die "needed for the build and not here:$missing" "scripts/deps.sh kernel"
. /etc/os-release
[ "${ID:-}" = debian ] && [ -n "${VERSION_CODENAME:-}" ] || die "this is ${PRETTY_NAME:-not Debian}, not a Debian release"
mkdir -p "$kernels" 2>/dev/null && [ -w "$kernels" ] || die "cannot write to $data" "run as root, or name a directory of your own: $0 DATA_DIR"

work=$(mktemp -d)
tmp=
# shellcheck disable=SC2154 # status is assigned in the trap
trap 'status=$?; rm -rf "$work" ${tmp:+"$tmp"}; exit $status' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

private_apt "$VERSION_CODENAME" "$VERSION_CODENAME-security" "$VERSION_CODENAME-updates" "$VERSION_CODENAME-backports"
package=linux-source-$series
# Backports rank below everything else, so that they are taken only where there is nothing else.
version=$(apt-cache -c "$work/apt.conf" policy "$package" | awk '$1 == "Candidate:" { print $2 }')
[ -n "$version" ] && [ "$version" != "(none)" ] || die "$package is in none of this machine's package lists" \
	"$(apt-cache -c "$work/apt.conf" search --names-only '^linux-source-[0-9.]+$' | awk '{ print $1 }' | tr '\n' ' ')are; --series chooses"
# 6.12.117-1~deb12u1 is release 6.12.117.
release=${version%%[-+~]*}-pinnace
config=$(sha256sum "$fragment" | cut -d' ' -f1)
if [ $again = no ] && grep -qsx "version $version" "$kernels/$release/origin" && grep -qsx "fragment $config" "$kernels/$release/origin"; then
	say "kernel $release is in $kernels already, and is the newest (--again builds it anew)"
	exit 0
fi

say "downloading $package $version"
(cd "$work/deb" && apt-get -c "$work/apt.conf" -qq download "$package") || die "apt could not download $package" \
	"check that this machine reaches its Debian mirror, and the free space of ${TMPDIR:-/tmp} (3 GB)"
deb=$(echo "$work"/deb/*.deb)
sum=$(sha256sum "$deb" | cut -d' ' -f1)
dpkg-deb -x "$deb" "$work/package"
mkdir "$work/linux"
tar -xf "$work/package/usr/src/$package.tar.xz" -C "$work/linux" --strip-components=1
rm "$deb" "$work/package/usr/src/$package.tar.xz"

cd "$work/linux"
say "configuring"
# The same source, fragment and compiler make the same bytes.
export KBUILD_BUILD_USER=pinnace KBUILD_BUILD_HOST=pinnace KBUILD_BUILD_VERSION=1
KBUILD_BUILD_TIMESTAMP=$(date -u -d "@$(stat -c %Y Makefile)")
export KBUILD_BUILD_TIMESTAMP
make -s KCONFIG_ALLCONFIG="$fragment" allnoconfig >/dev/null
unmet=$(sed -n 's/^\(CONFIG_[A-Z0-9_]*\)=y$/\1/p' "$fragment" | while read -r option; do
	grep -qx "$option=y" .config || printf ' %s' "$option"
done)
off=$(sed -n 's/^# \(CONFIG_MITIGATION_[A-Z0-9_]*\) is not set$/ \1/p' .config | tr -d '\n')
[ -z "$off" ] || die "protections of the processor would be off:$off" "add them to $fragment"
[ -z "$unmet" ] || say "this source does not have, or has no use for:$unmet"

jobs=${JOBS:-$(nproc)}
say "building Linux $release with $jobs jobs; this takes minutes"
nice -n "${NICE:-10}" make -s -j"$jobs" bzImage >"$work/log" 2>&1 || {
	tail -30 "$work/log" >&2
	die "the build failed; its last lines are above"
}

[ "$(cat include/config/kernel.release)" = "$release" ] || die "the source is of release $(cat include/config/kernel.release), not $release"

tmp=$(mktemp -d "$kernels/.tmp-XXXXXX")
mkdir "$tmp/kernel"
cp arch/x86/boot/bzImage "$tmp/kernel/vmlinuz"
cp .config "$tmp/kernel/config"
cp "$work/package/usr/share/doc/$package/copyright" "$tmp/kernel/copyright"
{
	echo "built $package"
	echo "version $version"
	echo "sha256 $sum"
	echo "fragment $config"
	echo "compiler $(gcc --version | head -1)"
} >"$tmp/kernel/origin"
chmod -R u+w,go+rX "$tmp/kernel"
sync -f "$tmp/kernel"
if [ -d "$kernels/$release" ]; then
	# VMs that run have it open; new ones take the new one.
	mv "$kernels/$release" "$tmp/old"
fi
mv "$tmp/kernel" "$kernels/$release"
sync -f "$kernels"
say "kernel $release is ready: $(du -sh "$kernels/$release" | cut -f1) in $kernels/$release"
say "new VMs take it after: pinnace kernel use $release --data-dir $data"
