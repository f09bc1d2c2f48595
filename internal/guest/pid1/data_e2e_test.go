//go:build linux

package pid1_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/secrettest"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
	"github.com/pinnacehq/pinnace/internal/volume"
)

// TestVolumesAndSecrets boots a VM for each story, as TestGuest does.
func TestVolumesAndSecrets(t *testing.T) {
	l := newLab(t)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *lab)
	}{
		{"volume", testVolume},
		{"damaged volume", testDamagedVolume},
		{"snapshot of a running volume", testFrozen},
		{"full disk of the host", testHostFull},
		{"secrets", testSecrets},
		{"secrets change", testSecretsChange},
		{"secrets missing", testSecretsMissing},
	} {
		t.Run(story.name, func(t *testing.T) { story.tell(t, l) })
	}
}

const volumeSize = 64 << 20

// makeVolume makes a volume in a store of its own, and returns what holds it.
func makeVolume(t *testing.T, dir string) *volume.Hold {
	t.Helper()
	store := openStore(t, dir)
	if err := store.Create(t.Context(), "data", volumeSize); err != nil {
		t.Fatal(err)
	}
	h, err := store.Hold("data", "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func openStore(t *testing.T, dir string) *volume.Store {
	t.Helper()
	store, err := volume.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// withVolume adds the VM's first volume to a configuration.
func withVolume(c guest.Config, path string) guest.Config {
	c.Disks = append(c.Disks, guest.Disk{Role: guest.RoleVolume, Serial: "volume0", Order: 4})
	c.Volumes = []guest.Volume{{Name: "data", Disk: len(c.Disks) - 1, Path: path}}
	return c
}

// testVolume: a new volume belongs to the workload's user; what the workload has synced survives the kill of its VM; the
// next VM finds it, larger if the host has made it so, with the owner that it has; and read-only means it.
func testVolume(t *testing.T, l *lab) {
	h := makeVolume(t, vmtest.Dir(t))
	m := l.boot(t, h.Path())
	c := withVolume(l.config("keep", "/srv/deep/data/file", "precious"), "/srv/deep/data")
	c.Process.User = "web"
	m.start(c)
	m.awaitText(guest.StreamStdout, "kept")
	m.kill()

	if err := h.Grow(2 * volumeSize); err != nil {
		t.Fatal(err)
	}
	m = l.boot(t, h.Path())
	m.start(withVolume(l.config("look", "/data", "/data/file"), "/data"))
	m.exit()
	m.end()
	f := m.facts()
	dir, file := f.of("/data"), f.of("/data/file")
	file.want("content", "precious")
	file.want("owner", "1000:1001")
	dir.want("owner", "1000:1001") // although root runs now
	dir.want("mode", "040755")
	dir.want("type", "ef53")
	if names, ok := dir.values["names"].([]any); !ok || slices.Contains(names, any("lost+found")) {
		t.Errorf("names: %v", names)
	}
	if n := dir.number("bytes"); n < 100<<20 {
		t.Errorf("the volume has %d bytes: it was not grown", n)
	}
	if flags := dir.hex("flags"); flags&(unix.ST_NODEV|unix.ST_NOSUID) != unix.ST_NODEV|unix.ST_NOSUID {
		t.Errorf("flags %x", flags)
	}
	if out := run(t, "e2fsck", "-f", "-n", h.Path()); strings.Contains(out, "recovering journal") {
		t.Errorf("the volume was not unmounted:\n%s", out)
	}

	m = l.boot(t, h.Path())
	c = withVolume(l.config("refused", "/data", "/dev/vde"), "/data")
	c.Volumes[0].ReadOnly = true
	m.start(c)
	m.exit()
	m.end()
	if got, want := m.text(guest.StreamStdout), "file: true\nremount: true\ndisk: true\n"; got != want {
		t.Errorf("read-only: %q, want %q", got, want)
	}
}

func testDamagedVolume(t *testing.T, l *lab) {
	h := makeVolume(t, vmtest.Dir(t))
	run(t, "debugfs", "-w", "-R", "set_super_value state 2", h.Path())
	m := l.boot(t, h.Path())
	_, err := m.tryStart(withVolume(l.config("look"), "/data"))
	got, ok := errors.AsType[*guest.StartError](err)
	if !ok || got.Stage != "volumes" || !strings.Contains(got.Message, "volume data at /data: its file system has noted errors") {
		t.Errorf("got %v", err)
	}
	m.end()
}

// testFrozen copies a volume while its guest writes to it: what is copied is a clean file system with everything in it
// that was written, the writer goes on afterwards, and a freeze that nobody ends does so by itself.
func testFrozen(t *testing.T, l *lab) {
	dir := vmtest.Dir(t)
	h := makeVolume(t, dir)
	m := l.boot(t, h.Path())
	m.start(withVolume(l.config("keep", "/data/file", "precious"), "/data"))
	m.awaitText(guest.StreamStdout, "kept")
	ctx, cancel := context.WithTimeout(t.Context(), 2*bootTimeout)
	defer cancel()
	if err := m.host.Freeze(ctx, "data", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := m.host.Freeze(ctx, "data", time.Minute); err == nil {
		t.Error("frozen twice")
	}
	if err := openStore(t, dir).SnapshotFrozen(ctx, "data", "one"); err != nil {
		t.Fatal(err)
	}
	if whole, err := m.host.Thaw(ctx, "data"); err != nil || !whole {
		t.Errorf("thaw: %v, %v", whole, err)
	}
	info, err := openStore(t, dir).Stat("data")
	if err != nil || len(info.Snapshots) != 1 {
		t.Fatalf("got %+v, %v", info, err)
	}
	if out := run(t, "e2fsck", "-f", "-n", info.Snapshots[0].Path); strings.Contains(out, "recovering journal") {
		t.Errorf("the copy is of a file system at work:\n%s", out)
	}
	if got := run(t, "debugfs", "-R", "cat file", info.Snapshots[0].Path); !strings.Contains(got, "precious") {
		t.Errorf("the copy has %q", got)
	}

	if err := m.host.Freeze(ctx, "data", 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for m.host.Freeze(ctx, "data", time.Minute) != nil { // until the first has ended
		if ctx.Err() != nil {
			t.Fatal("a freeze does not end by itself")
		}
	}
	if whole, err := m.host.Thaw(ctx, "data"); err != nil || !whole {
		t.Errorf("thaw: %v, %v", whole, err)
	}
	if whole, err := m.host.Thaw(ctx, "data"); err != nil || whole {
		t.Errorf("thaw of what is not frozen: %v, %v", whole, err)
	}
	if err := m.host.Freeze(ctx, "other", time.Minute); err == nil {
		t.Error("froze a volume that there is not")
	}
	if r, err := m.host.Exec(ctx, []string{"/bin/workload", "touch", "/data/later"}, 30*time.Second); err != nil || r.Code != 0 {
		t.Errorf("a writer after all that: %+v, %v", r, err)
	}
	// A machine that ends frozen ends all the same.
	if err := m.host.Freeze(ctx, "data", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := m.host.Stop(ctx, "KILL", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	m.exit()
	m.end()
	if out := run(t, "e2fsck", "-f", "-n", h.Path()); strings.Contains(out, "recovering journal") {
		t.Errorf("the volume was not unmounted:\n%s", out)
	}
}

// testHostFull: a volume promises more than the host's disk has. The workload gets an error, and the VM goes on.
func testHostFull(t *testing.T, l *lab) {
	dir := vmtest.Dir(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("needs a file system of its own: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	h := makeVolume(t, dir)
	m := l.boot(t, h.Path())
	m.start(withVolume(l.config("fill-until-error", "/data/big"), "/data"))
	if e := m.exit(); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	m.end()
	out := m.text(guest.StreamStdout)
	if !strings.Contains(out, "refused: ") || strings.Contains(out, "no space left") || !strings.HasSuffix(out, "still here\n") {
		t.Errorf("stdout %q", out)
	}
}

const canary = "c4nary'\"$ecret\\/+=?"

func secretBundle(version uint64, value string) guest.Bundle {
	return guest.Bundle{Name: "api", Version: version, Values: guest.SecretValues{"a": []byte(value), "b": []byte(value), "TOKEN": []byte(value)}}
}

// testSecrets: the files of each format, with mode and owner, in memory only; variables; and no trace elsewhere.
func testSecrets(t *testing.T, l *lab) {
	m := l.boot(t)
	c := l.config("look", "/run/secrets/api", "/run/secrets/api/a", "/etc/api.json", "/run/secrets/api.env", "/run/secrets/api/..data/b", "/proc/1/environ")
	c.Process.User = "web"
	bundle := secretBundle(3, canary)
	other, third := bundle, bundle
	other.Name, third.Name = "json", "dotenv"
	c.Secrets = []guest.Secret{
		{Bundle: "api", Version: 3, Path: "/run/secrets/api", Format: guest.FormatDir, Mode: 0o400, Env: []string{"TOKEN"}},
		{Bundle: "json", Version: 3, Path: "/etc/api.json", Format: guest.FormatJSON, Mode: 0o444, Owner: "10001:media"},
		{Bundle: "dotenv", Version: 3, Path: "/run/secrets/api.env", Format: guest.FormatDotenv, Mode: 0o640, Owner: "root:web"},
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	if _, err := m.host.Configure(ctx, c, bundle, other, third); err != nil {
		t.Fatal(err)
	}
	m.exit()
	m.end()
	f := m.facts()
	f.contains("env", "TOKEN="+canary)
	quoted := `"c4nary'\"\$ecret\\/+=?"`
	for path, want := range map[string][3]string{
		"/run/secrets/api/a":        {canary, "100400", "1000:1001"},
		"/run/secrets/api/..data/b": {canary, "100400", "1000:1001"},
		"/etc/api.json":             {`{` + "\n" + `  "TOKEN": "c4nary'\"$ecret\\/+=?",` + "\n", "100444", "10001:2001"},
		"/run/secrets/api.env":      {"TOKEN=" + quoted + "\na=" + quoted + "\nb=" + quoted + "\n", "100640", "0:1001"},
	} {
		file := f.of(path)
		file.contains("content", want[0])
		file.want("mode", want[1])
		file.want("owner", want[2])
		file.want("type", "1021994") // tmpfs
		const flags = unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC
		if got := file.hex("flags"); got&flags != flags {
			t.Errorf("%s: flags %x", path, got)
		}
	}
	f.of("/run/secrets/api").want("names", "[..1 ..data TOKEN a b]")
	f.of("/proc/1/environ").contains("error", "permission denied")

	// What the machine leaves: its disk and its console.
	dir := vmtest.Dir(t)
	if err := os.WriteFile(filepath.Join(dir, "console"), m.console.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Dir(m.scratch)} {
		if found, err := secrettest.For(canary).Below(d); err != nil || len(found) > 0 {
			t.Errorf("secrets are in %v, %v", found, err)
		}
	}
}

// testSecretsChange: further versions take the place of the first while the workload reads, each whole; the signal comes
// with the new files, once for each version that changed something; and what can't be written changes nothing.
func testSecretsChange(t *testing.T, l *lab) {
	m := l.boot(t)
	version := func(n uint64) string { return fmt.Sprintf("%s-%d", canary, n) }
	c := l.config("watch", "/run/api.json", "/run/api")
	c.Secrets = []guest.Secret{
		{Bundle: "json", Version: 1, Path: "/run/api.json", Format: guest.FormatJSON, Mode: 0o444},
		{Bundle: "dir", Version: 1, Path: "/run/api", Format: guest.FormatDir, Mode: 0o444},
	}
	named := func(name string, version uint64, value, signal string) guest.Bundle {
		b := secretBundle(version, value)
		b.Name, b.Signal = name, signal
		return b
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*bootTimeout)
	defer cancel()
	if _, err := m.host.Configure(ctx, c, named("json", 1, version(1), ""), named("dir", 1, version(1), "")); err != nil {
		t.Fatal(err)
	}
	m.awaitText(guest.StreamStdout, "watching")
	const versions = 20
	for n := uint64(2); n <= versions; n++ {
		for _, name := range []string{"json", "dir"} {
			signal := ""
			if n%10 == 0 && name == "json" {
				signal = "SIGHUP"
			}
			b := named(name, n, version(n), signal)
			for range 2 { // as a host does that has not heard the answer
				if err := m.host.Update(ctx, b); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	// While the machine runs: nothing on the disk, nor with any process of the host.
	finder := secrettest.For(canary)
	onDisk, err := finder.Below(filepath.Dir(m.scratch))
	if err != nil || len(onDisk) > 0 {
		t.Errorf("secrets are in %v, %v", onDisk, err)
	}
	if found, err := finder.InProcesses(); err != nil || len(found) > 0 {
		t.Errorf("secrets are in %v, %v", found, err)
	}
	bad := guest.Bundle{Name: "json", Version: versions + 1, Values: guest.SecretValues{"a": {0xff}}}
	if err := m.host.Update(ctx, bad); !errors.Is(err, guest.ErrBundleRefused) || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("a value that JSON can't hold: %v", err)
	}
	if err := m.host.Update(ctx, guest.Bundle{Name: "none", Version: 1}); !errors.Is(err, guest.ErrBundleRefused) {
		t.Errorf("a bundle that nobody asked for: %v", err)
	}
	if err := m.host.Stop(ctx, "TERM", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	m.exit()
	m.end()
	if got, want := m.text(guest.StreamStdout), "watching\nwrong 0, last "+version(versions)+", signals 2, some reads true\n"; got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
}

func testSecretsMissing(t *testing.T, l *lab) {
	m := l.boot(t)
	c := l.config("look")
	c.Secrets = []guest.Secret{{Bundle: "api", Version: 3, Env: []string{"NOT_THERE"}}}
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	_, err := m.host.Configure(ctx, c, secretBundle(3, "x"))
	got, ok := errors.AsType[*guest.StartError](err)
	if !ok || got.Stage != "secrets" || !strings.Contains(got.Message, "bundle api: it has no key NOT_THERE") {
		t.Errorf("got %v", err)
	}
	m.end()
}
