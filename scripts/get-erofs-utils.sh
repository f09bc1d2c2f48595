#!/bin/sh
# Fetches erofs-utils of Debian 13 and unpacks them into Pinnace's own data directory, for tests.
#
#   scripts/get-erofs-utils.sh [DATA_DIR]        DATA_DIR defaults to /var/lib/pinnace
#
# Debian 12 has erofs-utils 1.5, whose fsck.erofs knows neither blocks of 512 bytes nor several devices.
# Nothing is installed and nothing of this machine's apt changes: the packages, with the C library that they
# need, are downloaded with a private source list, state and cache from the mirror that this machine uses.
#
# What stays is DATA_DIR/erofs-utils/: fsck.erofs, mkfs.erofs and dump.erofs, which run as they are.
set -eu
export LC_ALL=C

say() { printf '%s\n' "get-erofs-utils: $*" >&2; }
die() { say "error: $*"; exit 1; }

data=${1:-/var/lib/pinnace}
tools=$data/erofs-utils
[ ! -x "$tools/fsck.erofs" ] || { say "they are in $tools already"; exit 0; }
for tool in apt-get dpkg dpkg-deb awk; do
	command -v "$tool" >/dev/null || die "$tool is missing; this script needs a Debian system"
done
mkdir -p "$data" || die "cannot write to $data"
. /etc/os-release
suite=trixie
[ "${VERSION_ID:-0}" -lt 13 ] || suite=$VERSION_CODENAME
site=$(apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' 'Component: main' |
	awk -v c="${VERSION_CODENAME:-}" '$2 == c { print $1; exit }')
[ -n "$site" ] || die "apt knows no mirror of ${VERSION_CODENAME:-this system}: run apt-get update"

work=$(mktemp -d "$data/.erofs-utils-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/tools/root"
: >"$work/status"
chmod 755 "$work"
[ "$(id -u)" != 0 ] || ! id _apt >/dev/null 2>&1 || chown _apt "$work/lists/partial" "$work/cache/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $suite main" >"$work/sources.list"
set -- -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
	-o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" -o Debug::NoLocking=1

say "reading the package list of $suite"
apt-get "$@" update
say "downloading erofs-utils and what they need"
apt-get "$@" -y --no-install-recommends --download-only install erofs-utils >/dev/null
for deb in "$work"/cache/archives/*.deb; do
	dpkg-deb -x "$deb" "$work/tools/root"
done
for name in fsck mkfs dump; do
	# The loader and the libraries are those that were unpacked, wherever the directory is.
	cat >"$work/tools/$name.erofs" <<'SH'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libraries=$(echo "$root"/usr/lib/*-linux-gnu)
for loader in "$root"/lib*/ld-linux*.so.* "$root"/usr/lib*/ld-linux*.so.* "$libraries"/ld-linux*.so.*; do
	[ ! -e "$loader" ] || exec "$loader" --library-path "$libraries" "$root/usr/bin/$(basename "$0")" "$@"
done
echo "$0: no loader in $root" >&2
exit 127
SH
	chmod 755 "$work/tools/$name.erofs"
done
"$work/tools/fsck.erofs" -V >/dev/null || die "what was unpacked does not run here"
mv "$work/tools" "$tools"
say "$("$tools/fsck.erofs" -V 2>&1 | head -1) is in $tools"
