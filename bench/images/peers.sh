#!/bin/sh
# Unpacks the programs that pulls are compared with, and everything that they need, into a directory of
# their own, where the benchmark runs them by chroot. Nothing is installed, and nothing of this machine's
# apt changes: packages are downloaded with a private source list, state and cache.
#
#   bench/images/peers.sh DIR [SUITE]     SUITE defaults to sid, which has the newest of each
#
# The mirror and the keys that sign it are those that this machine's apt is set up with.
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

say() { printf '%s\n' "peers: $*" >&2; }
die() { say "error: $*"; exit 1; }

dir=${1:?usage: peers.sh DIR [SUITE]}
suite=${2:-sid}
want="dash coreutils docker-registry podman skopeo umoci containerd erofs-utils isal zstd pigz crun ca-certificates"
root=$dir/root
if [ -f "$root/.complete" ] && [ "$(cat "$root/.complete")" = "$suite $want" ]; then
	say "they are in $root already"
	exit 0
fi
[ "$(id -u)" = 0 ] || die "unpacking and chroot take root"
mkdir -p "$dir"
rm -rf "$root" "$root.tmp"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

. /etc/os-release
repository=$(apt-get -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= indextargets --format '$(CODENAME) $(SITE)' 'Created-By: Packages' |
	awk -v c="${VERSION_CODENAME:-}" '$1 == c { print $2; exit }')
[ -n "$repository" ] || die "this machine's apt knows no mirror of ${VERSION_CODENAME:-Debian}; run apt-get update"
mkdir -p "$work/lists/partial" "$work/archives/partial"
: >"$work/status"
chmod 755 "$work"
! id _apt >/dev/null 2>&1 || chown -R _apt "$work/lists" "$work/archives"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $repository $suite main" >"$work/sources.list"
cat >"$work/apt.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
Dir::State "$work";
Dir::State::Lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work";
Dir::Cache::archives "$work/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Acquire::Languages "none";
APT::Install-Recommends "false";
CONF
say "reading the package list of $suite"
apt-get -c "$work/apt.conf" -qq update || die "apt could not read the list of $suite"

# What the closure lacks is said by the benchmark, which looks for each program by itself.
found=
for package in $want; do
	if apt-cache -c "$work/apt.conf" show "$package" >/dev/null 2>&1; then
		found="$found $package"
	else
		say "$suite has no $package"
	fi
done
say "downloading$found and what they need"
# shellcheck disable=SC2086 # a list of words
apt-get -c "$work/apt.conf" -qq -y --download-only install $found >/dev/null || die "apt could not download them"

mkdir -p "$root.tmp/usr/bin" "$root.tmp/usr/sbin" "$root.tmp/usr/lib" "$root.tmp/usr/lib64"
for link in bin sbin lib lib64; do
	ln -s "usr/$link" "$root.tmp/$link"
done
for deb in "$work"/archives/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -C "$root.tmp" -x --keep-directory-symlink --exclude ./usr/share/doc --exclude ./usr/share/man
	dpkg-deb -f "$deb" Package Version | awk '{ printf "%s ", $2 } END { print "" }' >>"$root.tmp/.versions"
done
mkdir -p "$root.tmp/var/tmp" "$root.tmp/proc" "$root.tmp/sys" "$root.tmp/dev" "$root.tmp/tmp" "$root.tmp/run" "$root.tmp/etc/containers"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root.tmp/etc/passwd"
printf 'root:x:0:\n' >"$root.tmp/etc/group"
printf '127.0.0.1 localhost\n' >"$root.tmp/etc/hosts"
ldconfig -r "$root.tmp"
echo "$suite $want" >"$root.tmp/.complete"
mv "$root.tmp" "$root"
say "they are in $root"
