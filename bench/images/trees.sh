#!/bin/sh
# Makes the trees of the image that pulls are measured with: what a team has that builds on Debian and
# ships a JavaScript application.
#
#   bench/images/trees.sh DIR
#
# DIR/1 is Debian's base, DIR/2 what nodejs, python3 and curl add to it, DIR/3 an application with its
# packages from npm. The fourth layer, which has what only layers have (whiteouts and the like), is made by
# the benchmark itself. Mirror and keys are those of this machine's apt.
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

say() { printf '%s\n' "trees: $*" >&2; }
die() { say "error: $*"; exit 1; }

dir=${1:?usage: trees.sh DIR}
packages="webpack webpack-cli typescript jest eslint prettier @babel/core @babel/preset-env react react-dom express lodash rxjs core-js"
if [ -f "$dir/.complete" ]; then
	say "they are in $dir already"
	exit 0
fi
[ "$(id -u)" = 0 ] || die "a Debian base takes root"
for tool in debootstrap npm; do
	command -v $tool >/dev/null || die "$tool is missing; run: apt-get install $tool"
done
rm -rf "$dir"
mkdir -p "$dir"
trap 'umount "$dir/merged" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

. /etc/os-release
mirror=$(apt-get -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= indextargets --format '$(CODENAME) $(SITE)' 'Created-By: Packages' |
	awk -v c="$VERSION_CODENAME" '$1 == c { print $2; exit }')
[ -n "$mirror" ] || die "this machine's apt knows no mirror of $VERSION_CODENAME; run apt-get update"

say "layer 1: Debian's base"
debootstrap --variant=minbase "$VERSION_CODENAME" "$dir/1" "$mirror" >"$dir/debootstrap.log" 2>&1 ||
	die "debootstrap failed: $(tail -n 1 "$dir/debootstrap.log")"
rm -rf "$dir"/1/var/cache/apt/* "$dir"/1/var/lib/apt/lists/*

say "layer 2: nodejs, python3 and curl"
mkdir "$dir/2" "$dir/work" "$dir/merged"
mount -t overlay overlay -o "lowerdir=$dir/1,upperdir=$dir/2,workdir=$dir/work,redirect_dir=off,metacopy=off" "$dir/merged"
cp /etc/resolv.conf "$dir/merged/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$dir/merged/usr/sbin/policy-rc.d"
chmod 755 "$dir/merged/usr/sbin/policy-rc.d"
{
	chroot "$dir/merged" apt-get -qq update
	chroot "$dir/merged" apt-get -qq -y --no-install-recommends install nodejs python3 curl ca-certificates
} >"$dir/apt.log" 2>&1 || die "apt failed: $(tail -n 1 "$dir/apt.log")"
rm -rf "$dir"/merged/var/cache/apt/* "$dir"/merged/var/lib/apt/lists/* "$dir/merged/usr/sbin/policy-rc.d"
: >"$dir/merged/etc/resolv.conf"
umount "$dir/merged"

say "layer 3: an application with packages of npm"
mkdir -p "$dir/3/srv/app"
# shellcheck disable=SC2086 # a list of words
(cd "$dir/3/srv/app" && npm install --ignore-scripts --no-audit --no-fund --cache "$dir/npm" $packages) >"$dir/npm.log" 2>&1 ||
	die "npm failed: $(tail -n 1 "$dir/npm.log")"
rm -rf "$dir/work" "$dir/merged" "$dir/npm"
touch "$dir/.complete"
say "they are in $dir: $(find "$dir/1" "$dir/2" "$dir/3" | wc -l) paths, $(du -shc "$dir/1" "$dir/2" "$dir/3" | tail -n 1 | cut -f 1)"
