package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// postgresRoot puts into a folder what an image of PostgreSQL needs: the files of Debian's packages that are installed here
// with the libraries that they load, and a shell. It takes seconds, and a base system minutes.
const postgresRoot = `set -e
root=$1
mkdir -p $root/usr/bin $root/usr/sbin $root/usr/lib64 $root/usr/lib $root/etc $root/var/lib/postgresql $root/run $root/tmp
chmod 1777 $root/tmp
for place in bin sbin lib lib64; do ln -s usr/$place $root/$place; done
ln -s /run $root/var/run
version=$(basename $(ls -d /usr/lib/postgresql/*/ | tail -1))
put() { for file; do mkdir -p "$root$(dirname "$file")"; cp -L "$file" "$root$file"; done; }
dpkg -L postgresql-$version postgresql-client-$version | grep -E "^/usr/(lib|share)/postgresql/" | grep -vE "/bitcode/|llvmjit|/man/" |
	while read -r file; do if [ -f "$file" ]; then put "$file"; fi; done
put $(for program in sh mkdir chown chmod setpriv id cat; do readlink -f "$(command -v $program)"; done)
ln -sf dash $root/usr/bin/sh
if [ -d /usr/share/zoneinfo ]; then mkdir -p $root/usr/share && cp -a /usr/share/zoneinfo $root/usr/share/; fi
put $(find $root/usr/lib/postgresql $root/usr/bin -type f -exec ldd {} + 2>/dev/null | grep -oE "/[^ ]+\.so[^ ]*" | grep -v ":$" | sort -u)
printf 'root:x:0:0::/root:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\n' > $root/etc/passwd
printf 'root:x:0:\npostgres:x:999:\n' > $root/etc/group
ln -s $version $root/usr/lib/postgresql/current
`

// postgresEntry is what the image does as people know it from public images of PostgreSQL: it makes the files in PGDATA at
// its first start, with the password of POSTGRES_PASSWORD, and trusts who is inside.
const postgresEntry = `#!/bin/sh
set -e
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
mkdir -p "$PGDATA" /run/postgresql
chown postgres:postgres "$PGDATA" /run/postgresql
chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
	# Who opens a pipe by its name has to own it.
	as_postgres sh -c 'echo "$POSTGRES_PASSWORD" |
		initdb -D "$PGDATA" -U postgres --no-locale -E UTF8 --auth-local=trust --auth-host=scram-sha-256 --pwfile=/dev/stdin'
	echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/run/postgresql
`

// postgresImage has buildah make an image of PostgreSQL, and write it as an archive of docker's.
func postgresImage(t *testing.T, dir, archive, tag string) {
	t.Helper()
	if _, err := exec.LookPath("buildah"); err != nil {
		t.Skip("needs buildah: apt-get install buildah")
	}
	root := filepath.Join(dir, "root")
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "BUILDAH_ISOLATION=chroot", "TMPDIR="+dir)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, tail(stderr.String()))
		}
		return strings.TrimSpace(string(out))
	}
	run("sh", "-c", postgresRoot, "sh", root)
	if err := os.WriteFile(filepath.Join(root, "usr/bin/docker-entrypoint"), []byte(postgresEntry), 0o755); err != nil {
		t.Fatal(err)
	}
	// An archive keeps who owns what; a folder that is copied would become root's.
	run("tar", "-C", root, "-cf", root+".tar", ".")
	storage := []string{"--storage-driver", "vfs", "--root", filepath.Join(dir, "storage"), "--runroot", filepath.Join(dir, "storage-run")}
	buildah := func(args ...string) string {
		t.Helper()
		return run("../../scripts/with-own-root.sh", append(append([]string{"buildah"}, storage...), args...)...)
	}
	container := buildah("from", "scratch")
	buildah("add", "--quiet", container, root+".tar", "/")
	buildah("config", "--entrypoint", `["/usr/bin/docker-entrypoint"]`, "--env", "PATH=/usr/lib/postgresql/current/bin:/usr/bin", "--env",
		"PGDATA=/var/lib/postgresql/data", "--stop-signal", "SIGINT", "--port", "5432", container)
	buildah("commit", "--quiet", container, "docker-archive:"+archive+":"+tag)
}
