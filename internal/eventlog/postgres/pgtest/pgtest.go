// Package pgtest starts PostgreSQL clusters for tests: real ones, from the distribution's package, each in a
// directory of its own, on a unix socket, and gone when the test ends. They can be killed, restarted and given a
// replica. Tests skip, with the reason, where PostgreSQL is not installed.
package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// TB is what is needed of a test or benchmark, or of a TestMain that has neither.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Cleanup(func())
}

// A Cluster is one running PostgreSQL server with its data.
type Cluster struct {
	dir, bin string
	owner    *syscall.Credential // nil: as ourselves
	cmd      *exec.Cmd
	output   *os.File
}

// settings make a small server. What makes a commit durable is as in production.
const settings = `
listen_addresses = ''
shared_buffers = 32MB
max_connections = 60
fsync = on
synchronous_commit = on
max_wal_size = 512MB
log_min_messages = warning
wal_level = replica
max_wal_senders = 4
hot_standby = on
`

// Start makes a cluster in a temporary directory and starts it.
func Start(t TB) *Cluster {
	t.Helper()
	return StartIn(t, "")
}

// StartIn is Start with the directory below parent, which the server's user must be able to enter.
func StartIn(t TB, parent string) *Cluster {
	t.Helper()
	c := newCluster(t, parent)
	c.must(t, "initdb", "-D", c.data(), "-U", "pinnace", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
	c.configure(t, settings)
	c.Start(t)
	return c
}

func newCluster(t TB, parent string) *Cluster {
	t.Helper()
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		t.Skipf("needs PostgreSQL: apt-get install postgresql")
	}
	slices.Sort(bins)
	c := &Cluster{bin: bins[len(bins)-1]}
	if c.dir, err = os.MkdirTemp(parent, "pinnace-pg-"); err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { c.remove(t) })
	// PostgreSQL refuses to run as root.
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Skipf("needs the user that the postgresql package makes: %v", err)
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(uidErr, gidErr, os.Chown(c.dir, int(uid), int(gid))); err != nil {
			t.Fatalf("%v", err)
		}
		c.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	return c
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

// Dir is where the cluster is.
func (c *Cluster) Dir() string { return c.dir }

// URL is how to connect to a database of the cluster.
func (c *Cluster) URL(database string) string {
	return fmt.Sprintf("postgres:///%s?host=%s&user=pinnace", database, c.dir)
}

// NewDatabase makes an empty database and gives its URL.
func (c *Cluster) NewDatabase(t TB, name string) string {
	t.Helper()
	c.must(t, "createdb", "-h", c.dir, "-U", "pinnace", name)
	return c.URL(name)
}

// SQL runs statements as somebody else would.
func (c *Cluster) SQL(t TB, database, statements string) string {
	t.Helper()
	out, err := c.TrySQL(database, statements)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// TrySQL is SQL that may fail.
func (c *Cluster) TrySQL(database, statements string) (string, error) {
	out, err := c.command("psql", "-h", c.dir, "-U", "pinnace", "-d", database, "-v", "ON_ERROR_STOP=1", "-qAt", "-c", statements).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("psql: %w\n%s", err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// Start starts a cluster that does not run, and waits until it answers.
func (c *Cluster) Start(t TB) {
	t.Helper()
	output, err := os.OpenFile(filepath.Join(c.dir, "output"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatalf("%v", err)
	}
	c.output = output
	c.cmd = c.command("postgres", "-D", c.data(), "-k", c.dir)
	c.cmd.Stdout, c.cmd.Stderr = output, output
	// A server must not outlive the test that was killed.
	c.cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	if err := c.cmd.Start(); err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if c.command("pg_isready", "-q", "-h", c.dir, "-U", "pinnace", "-d", "postgres").Run() == nil {
			return
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(output.Name())
			t.Fatalf("PostgreSQL does not answer:\n%s", log)
		}
	}
}

// Stop ends the server in the given way: SIGINT is a fast shutdown, SIGQUIT an immediate one, SIGKILL a crash.
func (c *Cluster) Stop(how syscall.Signal) {
	if c.cmd == nil {
		return
	}
	var workers []int
	if how == syscall.SIGKILL {
		// The server's children would end by themselves a moment later, which is not what a crash is. Stopped, it makes
		// no more of them.
		_ = c.cmd.Process.Signal(syscall.SIGSTOP)
		workers = children(c.cmd.Process.Pid)
		for _, pid := range workers {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	_ = c.cmd.Process.Signal(how)
	_ = c.cmd.Wait() // its error is the signal
	// The next server refuses to start while one of them still has the shared memory.
	for end := time.Now().Add(time.Minute); slices.ContainsFunc(workers, isPostgres) && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	_ = c.output.Close()
	c.cmd = nil
}

// isPostgres reports whether a process of the server still runs: not one that has ended and is not reaped, nor another
// one that was given its number.
func isPostgres(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), "(postgres) ")
	return rest != "" && !strings.HasPrefix(rest, "Z")
}

func children(parent int) (pids []int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	for f := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Replica makes a hot standby of c that follows it asynchronously, and starts it.
func (c *Cluster) Replica(t TB) *Cluster {
	t.Helper()
	r := newCluster(t, "")
	r.must(t, "pg_basebackup", "-h", c.dir, "-U", "pinnace", "-D", r.data(), "-R", "-X", "stream", "-c", "fast", "--no-sync")
	r.Start(t)
	return r
}

// Promote makes a replica the primary.
func (c *Cluster) Promote(t TB) {
	t.Helper()
	c.must(t, "pg_ctl", "promote", "-w", "-D", c.data())
}

func (c *Cluster) configure(t TB, text string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(c.data(), "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatalf("%v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatalf("%v", err)
	}
}

func (c *Cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Dir = c.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.owner}
	return cmd
}

func (c *Cluster) must(t TB, name string, args ...string) {
	t.Helper()
	out, err := c.command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func (c *Cluster) remove(t TB) {
	c.Stop(syscall.SIGQUIT)
	if err := os.RemoveAll(c.dir); err != nil {
		t.Fatalf("%v", err)
	}
}
