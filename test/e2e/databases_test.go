package e2e

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pinnacehq/pinnace/internal/guest/secrettest"
)

// databaseTime bounds what takes long under emulation, such as the first start of a database.
const databaseTime = 8 * time.Minute

// TestDatabases runs Debian's redis and PostgreSQL with volumes: what was acknowledged is there after the machine was cut
// off, and for the next version of the image. PostgreSQL makes its files at its first start, with a password that is in
// no place but the guest and the file that it was given in. It takes minutes, so that only PINNACE_WORKLOADS=1 asks for it.
func TestDatabases(t *testing.T) {
	if os.Getenv("PINNACE_WORKLOADS") != "1" {
		t.Skip("installs and boots large images: make workloads")
	}
	needBuildah(t)
	l := newRegistryLab(t)
	base := l.debian(t, "redis-server", "postgresql")
	t.Run("redis", func(t *testing.T) { l.with(t).testRedis(t, base) })
	t.Run("postgresql", func(t *testing.T) { l.with(t).testPostgres(t, base) })
}

// with is the lab for a part of its test.
func (l *lab) with(t *testing.T) *lab {
	part := *l
	part.t = t
	return &part
}

func (l *lab) testRedis(t *testing.T, base string) {
	port := freePort(t)
	const dockerfile = `FROM base
USER redis
WORKDIR /data
CMD ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data", "--appendonly", "yes", "--appendfsync", "always"]
`
	m := l.manifest("redis", `schema = "v1"
name = "redis"
resources = { memory = "192MiB", disk = "128MiB" }
ports.redis = { port = 6379 }
health.ready = { type = "exec", command = ["redis-cli", "ping"], interval = "2s", timeout = "2s" }
rollout = { hold = "0s", boot_timeout = "5m" }
stop = { timeout = "20s" }
[volumes.data]
path = "/data"
size = "128MiB"
`)
	first := l.local("-f", m, "--image", l.buildah(t, base, "redis", dockerfile), "--publish", fmt.Sprintf("redis=%d", port))
	l.redis(t, port, "SET key value", "+OK")
	l.cutOff(t, "redis")
	first.says("attempt 2")
	l.redis(t, port, "GET key", "value")
	l.redis(t, port, "SET key another", "+OK")
	first.interrupt()
	first.ends(0, "the process exited with status 0, as planned")
	next := l.local("-f", m, "--image", l.buildah(t, base, "redis", dockerfile+"LABEL version=2\n"), "--publish", fmt.Sprintf("redis=%d", port))
	l.redis(t, port, "GET key", "another")
	next.interrupt()
	next.ends(0)
}

// redis asks until there is the wanted answer.
func (l *lab) redis(t *testing.T, port int, command, want string) {
	t.Helper()
	l.eventually(databaseTime, command, func() error {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(conn, "%s\r\n", command); err != nil {
			return err
		}
		in := bufio.NewReader(conn)
		answer, err := in.ReadString('\n')
		if err == nil && strings.HasPrefix(answer, "$") {
			answer, err = in.ReadString('\n')
		}
		if answer = strings.TrimSpace(answer); err != nil || answer != want {
			return fmt.Errorf("got %q, %w", answer, err)
		}
		return nil
	})
}

// cutOff ends the one machine of the lab as a power cut would.
func (l *lab) cutOff(t *testing.T, name string) {
	t.Helper()
	monitors := l.processes("qemu-system")
	if len(monitors) != 1 {
		t.Fatalf("%s: there are %d monitors", name, len(monitors))
	}
	pid, err := strconv.Atoi(filepath.Base(filepath.Dir(monitors[0])))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// startPostgres is what images of PostgreSQL do: they make its files at the first start.
const startPostgres = `#!/bin/sh
set -e
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
if [ ! -s /data/db/PG_VERSION ]; then
	echo "making the database"
	initdb -D /data/db -U postgres --locale=C.UTF-8 --auth=scram-sha-256 --pwfile=/run/secrets/db/PASSWORD
	echo "host all all all scram-sha-256" >>/data/db/pg_hba.conf
	sync # or a machine that is cut off right now has the database without this line
fi
exec postgres -D /data/db -c listen_addresses='*' -c unix_socket_directories=/tmp
`

func (l *lab) testPostgres(t *testing.T, base string) {
	canary := "canary/" + rand.Text() + "+=%"
	secret := filepath.Join(t.TempDir(), "db.env") // not in the lab, where it is looked for
	if err := os.WriteFile(secret, []byte("PASSWORD='"+canary+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	context := filepath.Join(l.dir, "build-postgres")
	if err := os.MkdirAll(context, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(context, "start"), []byte(startPostgres), 0o755); err != nil {
		t.Fatal(err)
	}
	const dockerfile = "FROM base\nCOPY start /usr/local/bin/start\nUSER postgres\nSTOPSIGNAL SIGINT\nCMD [\"/usr/local/bin/start\"]\n"
	port := freePort(t)
	m := l.manifest("postgres", `schema = "v1"
name = "postgres"
resources = { memory = "384MiB", disk = "256MiB" }
ports.sql = { port = 5432 }
health.ready = { type = "tcp", port = "sql", interval = "2s", timeout = "2s" }
rollout = { hold = "0s", boot_timeout = "8m" }
stop = { timeout = "60s" }
[volumes.data]
path = "/data"
size = "512MiB"
[secrets.db]
path    = "/run/secrets/db"
require = ["PASSWORD"]
`)
	args := []string{"-f", m, "--secret", "db=" + secret, "--publish", fmt.Sprintf("sql=%d", port), "--log-level", "debug"}
	dsn := fmt.Sprintf("postgres://postgres:%s@127.0.0.1:%d/postgres?sslmode=disable", url.QueryEscape(canary), port)
	first := l.local(append(args, "--image", l.buildah(t, base, "postgres", dockerfile))...)
	l.sql(t, dsn, "CREATE TABLE kept (n int); INSERT INTO kept SELECT generate_series(1, 1000)", "")
	l.cutOff(t, "postgres")
	first.says("attempt 2")
	l.sql(t, dsn, "SELECT count(*)::text FROM kept", "1000")
	l.secretIsNowhere(t, canary, first)
	first.interrupt()
	first.ends(0, "the process exited with status 0, as planned")
	if n := strings.Count(first.out.String(), "making the database"); n != 1 {
		t.Errorf("the database was made %d times", n)
	}

	next := l.local(append(args, "--image", l.buildah(t, base, "postgres", dockerfile+"LABEL version=2\n"))...)
	l.sql(t, dsn, "SELECT count(*)::text FROM kept", "1000")
	next.interrupt()
	next.ends(0)
	if strings.Contains(next.out.String(), "making the database") {
		t.Error("the next version made its database anew")
	}
	l.secretIsNowhere(t, canary, next)
}

// sql runs one statement, as soon as the database takes it, and compares the one value that it gives.
func (l *lab) sql(t *testing.T, dsn, statement, want string) {
	t.Helper()
	l.eventually(databaseTime, statement, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(ctx) }()
		if want == "" {
			_, err := conn.Exec(ctx, statement)
			return err
		}
		var got string
		if err := conn.QueryRow(ctx, statement).Scan(&got); err != nil || got != want {
			return fmt.Errorf("got %q, %w", got, err)
		}
		return nil
	})
}

// secretIsNowhere looks for a secret in what Pinnace has on disk, in what processes were started with and in what was
// said.
func (l *lab) secretIsNowhere(t *testing.T, canary string, r *localRun) {
	t.Helper()
	finder := secrettest.For(canary)
	var files []string
	for _, dir := range []string{"data", "run", "config"} { // the others hold the images, which are large
		if _, err := os.Stat(filepath.Join(l.dir, dir)); err != nil {
			continue
		}
		found, err := finder.Below(filepath.Join(l.dir, dir))
		if err != nil {
			t.Error(err)
		}
		files = append(files, found...)
	}
	processes, err := finder.InProcesses()
	if err != nil {
		t.Error(err)
	}
	for _, place := range append(files, processes...) {
		t.Errorf("the secret is in %s", place)
	}
	for name, out := range map[string]*lockedBuffer{"stdout": r.out, "stderr": r.stderr} {
		if found, err := finder.In(strings.NewReader(out.String())); err != nil || len(found) > 0 {
			t.Errorf("the secret is in %s: %v, %v", name, found, err)
		}
	}
}
