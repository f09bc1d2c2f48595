# Functions for scripts that take packages from this machine's own mirror and leave its apt alone. Sourced, not run.
#
# The caller sets work (an empty directory of its own, which it removes), arch, VERSION_ID and VERSION_CODENAME, and
# has functions say and die. private_apt then writes $work/apt.conf, for apt-get -c and apt-cache -c: lists, status and
# cache are in $work. The mirror and the keys that sign it are those that this machine's apt already trusts.
# shellcheck shell=sh

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

# private_apt SUITE… sets apt up for the named suites of this machine's mirror, those of them that it has, and reads
# their package lists.
private_apt() {
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
	for wanted in "$@"; do
		case $wanted in
		# Backports are beside the main suite, whether this machine uses them or not.
		"$VERSION_CODENAME" | "$VERSION_CODENAME-backports") found=$main ;;
		*) found=$(pick "$wanted") ;;
		esac
		[ -z "$found" ] || private_source "$wanted" "$found"
	done

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
}
