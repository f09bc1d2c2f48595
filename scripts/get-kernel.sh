#!/bin/sh
# Fetches a guest kernel for Pinnace and unpacks it into Pinnace's own data directory.
#
#   scripts/get-kernel.sh [--update] [DATA_DIR]        DATA_DIR defaults to /var/lib/pinnace
#
# The guests need Linux 6.6 or newer. Debian's cloud kernel is one: Debian 13 has it in main, Debian 12
# in backports. Nothing is installed and nothing of this machine's apt changes: the package is downloaded
# with a private source list, state and cache, in a directory that is removed at the end. The mirror and
# the keys that sign it are those that this machine's apt already trusts.
#
# What stays is DATA_DIR/kernels/<release>/: vmlinuz, config, modules/, and origin and copyright, which
# say where it came from. A kernel that is there already is kept and nothing is downloaded; --update looks
# for a newer one and puts it beside the old one.
set -eu
export LC_ALL=C
. "$(dirname "$0")/private-apt.sh"

say() { printf '%s\n' "get-kernel: $*"; }
die() {
	printf '%s\n' "get-kernel: error: $1" >&2
	[ $# -lt 2 ] || printf '%s\n' "get-kernel: hint: $2" >&2
	exit 1
}
# new_enough RELEASE: 6.6 or newer, the first release whose EROFS mounts what Pinnace writes.
new_enough() { dpkg --compare-versions "${1%%[-+]*}" ge 6.6; }

update=no
data=/var/lib/pinnace
for arg in "$@"; do
	case $arg in
	-h | --help) sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"; exit 0 ;;
	--update) update=yes ;;
	-*) die "unknown option $arg" "usage: $0 [--update] [DATA_DIR]" ;;
	*) data=$arg ;;
	esac
done
kernels=$data/kernels

for tool in apt-get apt-cache dpkg dpkg-deb awk; do
	command -v "$tool" >/dev/null || die "$tool is missing; this script needs a Debian system" \
		"on another system, put vmlinuz, config and modules/ of a kernel >= 6.6 into $kernels/<release>/"
done

if [ $update = no ]; then
	for dir in "$kernels"/*/; do
		release=$(basename "$dir")
		if [ -f "$dir/vmlinuz" ] && [ -f "$dir/config" ] && [ -d "$dir/modules" ] && new_enough "$release"; then
			say "kernel $release is in $kernels already (--update looks for a newer one)"
			exit 0
		fi
	done
fi

arch=$(dpkg --print-architecture)
case $arch in
amd64 | arm64) ;;
*) die "there is no Pinnace guest kernel for the architecture $arch" "use an amd64 or arm64 machine" ;;
esac
. /etc/os-release
[ "${ID:-}" = debian ] && [ -n "${VERSION_CODENAME:-}" ] || die "this is ${PRETTY_NAME:-not Debian}, not a Debian release" \
	"put vmlinuz, config and modules/ of a kernel >= 6.6 into $kernels/<release>/"

mkdir -p "$kernels" 2>/dev/null && [ -w "$kernels" ] || die "cannot write to $data" "run as root, or name a directory of your own: $0 DATA_DIR"
work=$(mktemp -d)
tmp=
# shellcheck disable=SC2154 # status is assigned in the trap
trap 'status=$?; rm -rf "$work" ${tmp:+"$tmp"}; exit $status' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ "${VERSION_ID:-99}" -ge 13 ]; then
	private_apt "$VERSION_CODENAME" "$VERSION_CODENAME-security" "$VERSION_CODENAME-updates"
else
	private_apt "$VERSION_CODENAME-backports"
fi

meta=linux-image-cloud-$arch
package=$(apt-cache -c "$work/apt.conf" depends --important "$meta" 2>/dev/null |
	awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
[ -n "$package" ] || die "$meta is not in these package lists" "the mirror may be incomplete; try another one in /etc/apt"
release=${package#linux-image-}
new_enough "$release" || die "the newest cloud kernel there is $release, older than 6.6" "use Debian 12 or newer"

if [ -d "$kernels/$release" ]; then
	say "kernel $release is in $kernels already, and is the newest"
	exit 0
fi

say "downloading $package"
(cd "$work/deb" && apt-get -c "$work/apt.conf" -qq download "$package") || die "apt could not download $package" \
	"check that this machine reaches its Debian mirror, and the free space of ${TMPDIR:-/tmp} (40 MB)"
deb=$(echo "$work"/deb/*.deb)

say "unpacking it into $kernels/$release"
tmp=$(mktemp -d "$kernels/.tmp-XXXXXX")
mkdir "$tmp/kernel"
dpkg-deb -x "$deb" "$tmp/package"
for modules in "$tmp/package/usr/lib/modules/$release" "$tmp/package/lib/modules/$release"; do
	[ ! -d "$modules" ] || break
done
mv "$tmp/package/boot/vmlinuz-$release" "$tmp/kernel/vmlinuz"
mv "$tmp/package/boot/config-$release" "$tmp/kernel/config"
rm -f "$modules/build" "$modules/source" # links into header packages that are not here
mv "$modules" "$tmp/kernel/modules"
cp "$tmp/package/usr/share/doc/$package/copyright" "$tmp/kernel/copyright"
{
	echo "package $package"
	echo "version $(dpkg-deb -f "$deb" Version)"
	echo "sha256 $(sha256sum "$deb" | cut -d' ' -f1)"
} >"$tmp/kernel/origin"
chmod -R u+w,go+rX "$tmp/kernel"
sync -f "$tmp/kernel"
mv "$tmp/kernel" "$kernels/$release"
sync -f "$kernels"
say "kernel $release is ready: $(du -sh "$kernels/$release" | cut -f1) in $kernels/$release"
