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

# write_config FILE writes apt settings which keep lists, status and cache in our own directory. They are
# read after the machine's own configuration, so that its proxies and certificates hold. The hooks are
# cleared because container images ship ones that empty the machine's package cache.
write_config() {
	cat >"$1" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State "$work";
Dir::State::Lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
Dir::Cache::archives "$work/cache/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Languages "none";
CONF
}

# targets lists what this machine's apt reads packages from: suite, repository, and the file and entry
# in that file which say so. apt tells only of lists that it has downloaded. Asking must not leave a cache.
targets() {
	apt-get ${own:+-c "$own"} -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= indextargets --format '$(RELEASE) $(REPO_URI) $(SOURCESENTRY) $(CODENAME)' \
		'Created-By: Packages' "Architecture: $arch" 'Component: main'
}
# pick SUITE prints "repository sourcesentry" of the first target of that suite, by name or by codename
# (a source list may say "stable").
pick() { targets | awk -v suite="$1" '$1 == suite || $4 == suite { print $2, $3; exit }'; }

# private_source SUITE "REPOSITORY FILE:ENTRY" adds the suite to the private sources. Options such as
# Signed-By are copied from the machine's own entry: a .list file counts lines, a .sources file stanzas.
private_source() {
	suite=$1 repository=${2%% *} entry=${2#* }
	file=${entry%:*} number=${entry##*:}
	case $file in
	*.sources)
		awk -v want="$number" -v uri="$repository" -v suite="$suite" '
			/^[[:space:]]*$/ { inside = 0; next }
			/^#/ { next }
			!inside { inside = 1; stanza++; if (stanza == want)
				print "Types: deb\nURIs: " uri "\nSuites: " suite "\nComponents: main\nTargets: Packages" }
			stanza != want { next }
			/^[^[:space:]]/ { skip = tolower($1) ~ /^(types|uris|suites|components|architectures|targets|enabled):/ }
			!skip { print }
			END { print "" }' "$file" >>"$work/sources.list.d/private.sources"
		;;
	*)
		options=$(sed -n "${number}s/^[[:space:]]*deb[[:space:]]*\(\[[^]]*\]\).*/\1/p" "$file")
		printf 'deb %s %s %s main\n' "$options" "$repository" "$suite" >>"$work/sources.list.d/private.list"
		;;
	esac
}

mkdir -p "$work/sources.list.d" "$work/lists/partial" "$work/cache/archives/partial" "$work/deb"
: >"$work/status"

# apt downloads as the user _apt when it runs as root; that user must reach the directory.
chmod 755 "$work"
[ "$(id -u)" != 0 ] || ! id _apt >/dev/null 2>&1 || chown _apt "$work/deb" "$work/lists/partial"

own=
main=$(pick "$VERSION_CODENAME")
if [ -z "$main" ]; then
	say "this machine has no package lists; reading its sources to learn which mirror it uses"
	own=$work/own.conf
	write_config "$own"
	apt-get -c "$own" -qq update || say "apt could not read all of them; going on with those that it could"
	main=$(pick "$VERSION_CODENAME")
fi
[ -n "$main" ] || die "this machine's apt has no mirror for $VERSION_CODENAME main that it can read" \
	"make apt-get update work: /etc/apt/sources.list tells this script which mirror and keys to use"
if [ "${VERSION_ID:-99}" -ge 13 ]; then
	private_source "$VERSION_CODENAME" "$main"
	for suite in "$VERSION_CODENAME-security" "$VERSION_CODENAME-updates"; do
		found=$(pick "$suite")
		[ -z "$found" ] || private_source "$suite" "$found"
	done
else
	private_source "$VERSION_CODENAME-backports" "$main"
fi

write_config "$work/apt.conf"
cat >>"$work/apt.conf" <<CONF
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$work/sources.list.d";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
CONF

say "reading the package list of $(cat "$work"/sources.list.d/* | awk '/^(URIs|Suites):/ { printf "%s ", $2 } /^deb / { sub(/\[[^]]*\]/, ""); printf "%s %s ", $2, $3 }')"
apt-get -c "$work/apt.conf" -qq update || die "apt could not read the package list (its messages are above)" \
	"check that this machine reaches its Debian mirror: apt-get update"

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
