#!/bin/bash
# The whole path on this machine: an image in a registry and a manifest become a microVM that answers, are
# updated, and are rolled back, while somebody keeps asking. Run it with: make demo
#
# KEEP=1 leaves everything running and prints what to try next.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "demo: needs root, for network namespaces and tap devices: sudo make demo" >&2; exit 3; }

data_dir=${DATA_DIR:-/var/lib/pinnace}
work=$(mktemp -d /tmp/pinnace-demo.XXXXXX)
pinnace=$PWD/bin/pinnace
registry=127.0.0.1:5000
url=http://127.0.0.1:8080/
# Nothing of the demo goes into the user's own configuration or image storage.
export XDG_CONFIG_HOME=$work/config TMPDIR=$work/tmp
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
mkdir -p "$TMPDIR" "$work/config"
dev_pid= load_pid=

bold() { if [ -t 1 ]; then printf '\033[1m%s\033[0m\n' "$*"; else printf '%s\n' "$*"; fi; }
now() { date +%s%N; }
began=$(now)
seconds() { awk -v ns=$(($(now) - $1)) 'BEGIN { printf "%.1f s", ns / 1e9 }'; }
# step TEXT COMMAND… says what it does, does it, and says how long it took.
step() {
	local what=$1 t
	shift
	bold "== $what"
	t=$(now)
	"$@"
	echo "   ($(seconds "$t"))"
}
show() {
	echo "\$ $*" | sed "s|$pinnace|pinnace|"
	"$@"
}

stop_load() {
	[ -n "$load_pid" ] || return 0
	kill "$load_pid" 2>/dev/null || true
	wait "$load_pid" 2>/dev/null || true
	load_pid=
}
stop_dev() {
	[ -n "$dev_pid" ] || return 0
	kill -INT "$dev_pid" 2>/dev/null || true
	wait "$dev_pid" || true
	dev_pid=
}
clean_up() {
	status=$?
	stop_load
	if [ $status != 0 ] && [ -s "$work/dev.log" ]; then
		echo "demo: failed; the end of pinnace dev's log:" >&2
		tail -n 20 "$work/dev.log" >&2
	fi
	if [ $status != 0 ] || [ -z "${KEEP:-}" ]; then
		stop_dev
		rm -rf "$work"
	fi
	exit $status
}
trap clean_up EXIT
trap 'exit 130' INT TERM

start_dev() {
	"$pinnace" dev --data-dir "$work/data" --run-dir "$work/run" --kernels "$data_dir/kernels" >"$work/dev.log" 2>&1 &
	dev_pid=$!
	for _ in $(seq 300); do
		if grep -q ' is up (pid' "$work/dev.log"; then
			grep -E 'is up \(pid|^  (API|registry|microVMs) ' "$work/dev.log"
			return
		fi
		kill -0 "$dev_pid" 2>/dev/null || break
		sleep 0.2
	done
	echo "demo: pinnace dev did not start" >&2
	exit 1
}

# storage keeps buildah's images in the demo's own folder.
storage=(--root "$work/storage/root" --runroot "$work/storage/run")
build() {
	local version=$1 context=$work/hello-v$1
	mkdir -p "$context"
	cp examples/hello/Dockerfile "$context/"
	mkdir "$context/src"
	cp examples/hello/main.go "$context/src/"
	sed -i "s/^var version = .*/var version = \"$version\"/" "$context/src/main.go"
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$context/hello" "$context/src/main.go"
	scripts/with-own-root.sh buildah "${storage[@]}" build --quiet --tag "hello:v$version" "$context" >/dev/null
	echo "   built hello:v$version"
}
push() {
	scripts/with-own-root.sh buildah "${storage[@]}" push --quiet --tls-verify=false "hello:v$1" "docker://$registry/hello:v$1"
	echo "   $(skopeo inspect --tls-verify=false --format '{{.Name}} {{.Digest}}' "docker://$registry/hello:v$1")"
}
deploy() { show "$pinnace" deploy -f examples/hello/pinnace.toml --image "$registry/hello:v$1"; }
# fetch VERSION fetches the page through the public port, and expects that version.
fetch() {
	local page
	echo "\$ curl $url"
	page=$(curl -sS --max-time 5 "$url")
	echo "$page"
	case $page in *"version $1,"*) ;; *) echo "demo: expected version $1" >&2; exit 1 ;; esac
}
# load asks four times a second, and counts.
load() {
	set +e
	while :; do
		if page=$(curl -sS --max-time 5 "$url" 2>&1); then
			echo "ok ${page%%,*}"
		else
			echo "failed $(date +%T) $page"
		fi
		sleep 0.25
	done >"$work/load.log"
}
count_load() {
	stop_load
	sort "$work/load.log" | uniq -c | sed 's/^ */   /'
	local failed
	failed=$(grep -c '^failed' "$work/load.log" || true)
	echo "   $(wc -l <"$work/load.log") requests, $failed failed"
	[ "$failed" = 0 ] || exit 1
}
left_over() {
	local left=0 pid line
	for pid in /proc/[0-9]*; do
		# Processes come and go while one looks.
		line=$(cat "$pid/cmdline" 2>/dev/null | tr '\0' ' ') || continue
		case $line in *"$work"*) echo "   left running: $line" >&2; left=1 ;; esac
	done
	if grep -q -- "$work" /proc/mounts; then grep -- "$work" /proc/mounts >&2; left=1; fi
	if ip -o link show | grep -E ': pin[^:]*[@:]' >&2; then left=1; fi
	if [ -e "$work" ]; then echo "   left: $work" >&2; left=1; fi
	[ $left = 0 ] || exit 1
	echo "   no process, namespace, mount, device or file"
}
finish() {
	stop_dev
	rm -rf "$work"
}

step "start pinnace dev: server, agent, proxy and a registry" start_dev
step "build version 1 from its Dockerfile" build 1
step "build version 2, which differs in one line" build 2
step "push version 1 to the registry" push 1
step "push version 2" push 2
step "deploy version 1" deploy 1
step "fetch its page through the public port" fetch 1
bold "== from now on, four requests a second"
load &
load_pid=$!
step "deploy version 2" deploy 2
step "fetch" fetch 2
step "roll back" show "$pinnace" rollback hello
step "fetch version 1 again" fetch 1
sleep 1
bold "== what the requests met meanwhile"
count_load
step "what runs" show "$pinnace" status
step "why the instance is as it is" show "$pinnace" why hello/0
step "what happened" show "$pinnace" events
step "prove that the log was not edited" show "$pinnace" audit verify
if [ -n "${KEEP:-}" ]; then
	bold "== left running, as you asked; it took $(seconds "$began")"
	cat <<MORE
Try:
  export XDG_CONFIG_HOME=$work/config
  bin/pinnace status
  bin/pinnace logs hello -f
  bin/pinnace events -f
  bin/pinnace instances --all
  curl $url
Stop it and remove what it made:
  kill -INT $dev_pid; while kill -0 $dev_pid 2>/dev/null; do sleep 1; done; rm -rf $work
MORE
	trap - EXIT
	exit 0
fi
step "stop everything" finish
bold "== what is left"
left_over
bold "demo: passed in $(seconds "$began")"
