#!/bin/sh
# Installs what is missing on a Debian 12 or 13 machine to build, run and test Pinnace, and says what
# each package is for. It needs root only when something is missing.
#
#   scripts/deps.sh build         Go and what the build needs
#   scripts/deps.sh demo          the same, and what the demo runs
#   scripts/deps.sh test          the same, and what the end-to-end tests run
#   scripts/deps.sh bench         the same as build, and what benchmarks compare with
#   scripts/deps.sh workloads     the same as build, and what makes images of Debian's packages
#   scripts/deps.sh kernel        the same as build, and what scripts/build-kernel.sh needs
#
# It changes nothing else: Debian 12 has a Go that is too old to fetch the one go.mod names, so there it
# is taken from the backports suite through a private list of sources that is gone when the script ends.
# The mirror is always the one that this machine's apt is set up with.
set -eu

want=${1:-build}
. /etc/os-release
codename=${VERSION_CODENAME:-}
tmp=
trap '[ -z "$tmp" ] || rm -rf "$tmp"' EXIT INT TERM

say() { printf '%s\n' "deps: $*" >&2; }
die() { say "$*"; exit 1; }

# need COMMAND PACKAGE WHY: remembers PACKAGE when COMMAND is not there.
missing=
need() {
	PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 && return 0
	say "$2 is missing: $3"
	missing="$missing $2"
}

# go_is_fit: 1.21 and later fetch by themselves the version that go.mod names.
go_is_fit() {
	command -v go >/dev/null 2>&1 || return 1
	v=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed 's/^go//')
	major=${v%%.*} rest=${v#*.} minor=${rest%%[!0-9]*}
	[ "${major:-0}" -gt 1 ] || [ "${minor:-0}" -ge 21 ]
}

need git git "the version that a build reports comes from it"
[ -s /etc/ssl/certs/ca-certificates.crt ] || {
	say "ca-certificates is missing: Go modules come over HTTPS"
	missing="$missing ca-certificates"
}
case $want in build) ;; demo | test)
	need qemu-system-x86_64 qemu-system-x86 "runs the microVMs"
	need ip iproute2 "shows the network namespaces that Pinnace makes"
	need buildah buildah "builds the example's image from its Dockerfile"
	need skopeo skopeo "pushes images to the registry, as any standard client"
	need curl curl "fetches the example's page"
	need mkfs.ext4 e2fsprogs "makes the template of the scratch disks"
	need dpkg-deb dpkg "unpacks the guest kernel"
	need ps procps "shows that nothing is left running"
	# Buildah wants a runtime on the machine even when it isolates by chroot only.
	need crun crun "buildah refuses to work without a container runtime"
	if [ "${VERSION_ID:-0}" -ge 13 ] && [ ! -e /usr/lib/podman/netavark ]; then
		say "netavark is missing: buildah refuses to work without it since Debian 13"
		missing="$missing netavark"
	fi
	;;
bench)
	need haproxy haproxy "is what the proxy is measured against"
	need wrk wrk "makes connections, faster than a proxy takes them"
	need debootstrap debootstrap "makes the base layer of the image that is pulled"
	need npm npm "fetches what the application in that image is made of"
	need unshare util-linux "runs the tools that pulls are compared with among mounts of their own"
	;;
workloads)
	need debootstrap debootstrap "makes the base of images of Debian's packages"
	;;
kernel)
	need gcc gcc "compiles the kernel"
	need make make "runs its build"
	need flex flex "makes parsers for its build"
	need bison bison "makes parsers for its build"
	need bc bc "computes constants for its build"
	need perl perl "runs scripts of its build"
	need lz4 lz4 "compresses the kernel"
	need xz xz-utils "unpacks the source"
	need dpkg-deb dpkg "unpacks the source's package"
	[ -e /usr/include/gelf.h ] || {
		say "libelf-dev is missing: a tool of the build reads ELF files"
		missing="$missing libelf-dev"
	}
	;;
*) die "usage: scripts/deps.sh build|demo|test|bench|workloads|kernel" ;;
esac
if [ "$want" = test ]; then
	need debootstrap debootstrap "makes a base for images that were not written for Pinnace"
	need strace strace "makes syncs fail, to see what is done about it"
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || {
		say "postgresql is missing: the event log's other engine; tests start clusters of their own"
		missing="$missing postgresql"
	}
	need umoci umoci "unpacks images, to compare its trees with those that Pinnace's guests see"
	need docker-registry docker-registry "a registry that is not ours, with passwords, tokens and certificates"
	need mkfs.xfs xfsprogs "makes a file system that can share blocks between files"
	need fsck.erofs erofs-utils "checks the file systems that Pinnace writes with the tool of their authors"
fi
go=
go_is_fit || {
	say "Go 1.21 or later is missing: it builds Pinnace, and fetches the exact version that go.mod names"
	go=golang-go
}
[ -n "$missing$go" ] || exit 0

[ "$(id -u)" = 0 ] || die "to install these, run this as root, or: apt-get install$missing $go"
command -v apt-get >/dev/null 2>&1 || die "there is no apt-get here; install them by hand"
export DEBIAN_FRONTEND=noninteractive
say "apt-get update"
apt-get -qq update

if [ -n "$go" ]; then
	candidate=$(apt-cache policy golang-go | sed -n 's/^ *Candidate: *[0-9]*:*1\.\([0-9]*\).*/\1/p')
	if [ "${candidate:-0}" -lt 21 ]; then
		[ -n "$codename" ] || die "cannot tell which Debian this is; install Go 1.21 or later by hand"
		say "this Debian's own Go is 1.${candidate:-?}; taking $codename-backports' for this one install"
		tmp=$(mktemp -d)
		mkdir -p "$tmp/lists/partial"
		key=/usr/share/keyrings/debian-archive-keyring.gpg
		site=$(apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' |
			awk -v c="$codename" '$2 == c { print $1; exit }')
		[ -n "$site" ] || die "apt knows no mirror of $codename"
		for suite in "$codename" "$codename-backports"; do
			echo "deb [signed-by=$key] $site $suite main"
		done >"$tmp/sources.list"
		set -- -o Dir::Etc::SourceList="$tmp/sources.list" -o Dir::Etc::SourceParts=/dev/null \
			-o Dir::State::Lists="$tmp/lists"
		apt-get -qq "$@" update
		say "apt-get install $go"
		apt-get -qq -y --no-install-recommends "$@" -t "$codename-backports" install $go >/dev/null
	else
		missing="$missing $go"
	fi
fi
if [ -n "$missing" ]; then
	say "apt-get install$missing"
	# shellcheck disable=SC2086 # a list of words
	apt-get -qq -y --no-install-recommends install $missing >/dev/null
	case " $missing " in *" docker-registry "*)
		# The tests start their own. The package's service would take the port of Pinnace's registry.
		! command -v systemctl >/dev/null 2>&1 || systemctl disable --now docker-registry >/dev/null 2>&1 || :
		;;
	esac
fi
