package agent

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
	"github.com/pinnacehq/pinnace/internal/volume"
)

const atOnceReady = "rollout.hold = \"0s\""

// bind says which volumes of the host an instance's are: NAME=ID.
func bind(volumes ...string) func(*pinnacev1.Assignment) {
	return func(a *pinnacev1.Assignment) {
		for _, v := range volumes {
			name, id, _ := strings.Cut(v, "=")
			a.Volumes = append(a.Volumes, &pinnacev1.AssignedVolume{Name: name, Id: id})
		}
	}
}

func (l *lab) volume(id string) volume.Info {
	l.t.Helper()
	store, err := volume.Open(filepath.Join(l.dir, "data", "volumes"))
	if err != nil {
		l.t.Fatal(err)
	}
	info, err := store.Stat(id)
	if err != nil {
		l.t.Fatal(err)
	}
	return info
}

func needMkfs(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4: apt-get install e2fsprogs")
	}
}

// keepsConfig is a process that runs until it is stopped, and tells its configuration.
func keepsConfig(configs chan<- *guesttest.Process) vmtest.Guest {
	w := guesttest.Workload{}
	return func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		w := w
		w.Run = func(ctx context.Context, p *guesttest.Process) int {
			configs <- p
			<-ctx.Done()
			return 0
		}
		return playing(w)(ctx, g)
	}
}

// TestVolumes: the volumes of an instance are made, are disks of its machine behind all others, and are held for as long
// as the machine lives, whatever becomes of the agent; then the next one has them.
func TestVolumes(t *testing.T) {
	needMkfs(t)
	l := newLab(t)
	configs := make(chan *guesttest.Process, 8)
	l.runs("db", keepsConfig(configs))
	l.start()
	rel := l.app("db", atOnceReady, "[volumes.wal]", "path = \"/wal\"", "size = \"64MiB\"", "read_only = true",
		"[volumes.data]", "path = \"/data\"", "size = \"64MiB\"")
	l.assign("dev", "db-0", rel, bind("wal=db-wal-0", "data=db-data-0"))
	ready := l.awaitState("db-0", stateReady)

	spec, config := l.machine("db-0"), (<-configs).Config
	disks := spec.Disks[len(spec.Disks)-2:]
	want := []vm.Disk{
		{ID: "volume0", Path: filepath.Join(l.dir, "data", "volumes", "db-data-0", "volume.ext4"), Durable: true},
		{ID: "volume1", Path: filepath.Join(l.dir, "data", "volumes", "db-wal-0", "volume.ext4"), Durable: true},
	}
	if !slices.Equal(disks, want) {
		t.Errorf("the last disks are %+v", disks)
	}
	first := len(config.Disks) - 2
	if got, want := config.Volumes, []guest.Volume{{Name: "data", Disk: first, Path: "/data"}, {Name: "wal", Disk: first + 1, Path: "/wal", ReadOnly: true}}; !slices.Equal(got, want) {
		t.Errorf("the guest has %+v", got)
	}
	for i, d := range config.Disks[first:] {
		if (d != guest.Disk{Role: guest.RoleVolume, Serial: disks[i].ID, Order: first + i}) {
			t.Errorf("disk %d of the guest is %+v", first+i, d)
		}
	}
	detail := ""
	for _, s := range ready.Stages {
		if s.Name == "disks" {
			detail = s.Detail
		}
	}
	if detail != "scratch 64 MiB, volume data 64 MiB (new), volume wal 64 MiB (new)" {
		t.Errorf("stage disks: %q", detail)
	}
	held := func(when string) {
		t.Helper()
		if by := l.volume("db-data-0").HeldBy; by != "attempt 1 of db-0" {
			t.Errorf("%s: held by %q", when, by)
		}
	}
	held("running")

	// Another instance that wants one of them is told who has it.
	l.assign("dev", "db-1", rel, bind("wal=db-wal-1", "data=db-data-0"))
	if end := l.awaitAttemptEnd("db-1", 1); end.Kind != causeStartFailed || end.Stage != "disks" || !strings.Contains(end.Detail, "attempt 1 of db-0") {
		t.Errorf("the second holder: %v", end)
	}
	l.stop("db-1")
	l.awaitEnd("db-1")

	l.leave()
	held("without an agent")
	l.forgetReports()
	l.start()
	l.awaitState("db-0", stateReady)
	held("with the next agent")
	l.driver.Kill("db-0.1")
	l.awaitAttemptEnd("db-0", 1)
	l.await("db-0", "runs again", func(r *pinnacev1.InstanceReport) bool { return r.Attempt == 2 && r.State == stateReady })
	if by := l.volume("db-data-0").HeldBy; by != "attempt 2 of db-0" {
		t.Errorf("after a restart: held by %q", by)
	}
	l.stop("db-0")
	l.awaitEnd("db-0")
	if info := l.volume("db-data-0"); info.HeldBy != "" || info.Size != 64<<20 {
		t.Errorf("after the end: %+v", info)
	}
}

// TestVolumeSizes: a volume grows to what the manifest says, and stays what it is when that is more.
func TestVolumeSizes(t *testing.T) {
	needMkfs(t)
	l := newLab(t)
	l.start()
	for i, tc := range []struct{ size, detail string }{
		{"64MiB", "volume data 64 MiB (new)"},
		{"128MiB", "volume data 128 MiB (grown from 64 MiB)"},
		{"96MiB", "volume data 96 MiB (128 MiB already)"},
		{"128MiB", "volume data 128 MiB"},
	} {
		id := "db-" + string(rune('0'+i))
		l.assign("dev", id, l.app("db", atOnceReady, "[volumes.data]", "path = \"/data\"", "size = \""+tc.size+"\""), bind("data=one"))
		ready := l.awaitState(id, stateReady)
		if !slices.ContainsFunc(ready.Stages, func(s *pinnacev1.Stage) bool {
			return s.Name == "disks" && strings.HasSuffix(s.Detail, ", "+tc.detail)
		}) {
			t.Errorf("%s: stages %v", tc.detail, ready.Stages)
		}
		l.stop(id)
		l.awaitEnd(id)
	}
}

// TestSnapshotVolume copies a volume that is in use only while its guest writes nothing, and keeps no copy of which that
// is not certain.
func TestSnapshotVolume(t *testing.T) {
	needMkfs(t)
	l := newLab(t)
	var mu sync.Mutex
	var asked []int64
	answer := guest.Frozen{Whole: true}
	l.runs("db", playing(guesttest.Workload{Freeze: func(m guest.Freeze) guest.Frozen {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, m.ForMS)
		return answer
	}}))
	say := func(a guest.Frozen) {
		mu.Lock()
		defer mu.Unlock()
		answer, asked = a, nil
	}
	asks := func() []int64 {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(asked)
	}
	l.start()
	l.assign("dev", "db-0", l.app("db", atOnceReady, "[volumes.data]", "path = \"/data\"", "size = \"64MiB\"",
		"[volumes.seed]", "path = \"/seed\"", "size = \"64MiB\"", "read_only = true"), bind("data=one", "seed=two"))
	l.awaitState("db-0", stateReady)
	snapshots := func(id string) (names []string) {
		for _, s := range l.volume(id).Snapshots {
			names = append(names, s.Name)
		}
		return names
	}
	if err := l.agent.SnapshotVolume(t.Context(), "one", "a"); err != nil {
		t.Fatal(err)
	}
	if got := asks(); !slices.Equal(got, []int64{freezeLimit.Milliseconds(), 0}) {
		t.Errorf("the guest was asked %v", got)
	}
	if err := l.agent.SnapshotVolume(t.Context(), "one", "a"); !errors.Is(err, volume.ErrExists) {
		t.Errorf("a second one of that name: %v", err)
	}
	say(guest.Frozen{})
	if err := l.agent.SnapshotVolume(t.Context(), "one", "b"); err == nil || !strings.Contains(err.Error(), "stop the instance first") {
		t.Errorf("the guest wrote meanwhile: %v", err)
	}
	say(guest.Frozen{Error: "no such ioctl"})
	if err := l.agent.SnapshotVolume(t.Context(), "one", "c"); err == nil || !strings.Contains(err.Error(), "no such ioctl") {
		t.Errorf("the guest can't: %v", err)
	}
	if got := snapshots("one"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("snapshots %v", got)
	}
	say(guest.Frozen{Whole: true})
	if err := l.agent.SnapshotVolume(t.Context(), "two", "a"); err != nil || len(asks()) != 0 {
		t.Errorf("one that is read-only: %v, the guest was asked %v", err, asks())
	}
	if err := l.agent.SnapshotVolume(t.Context(), "none", "a"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("one that there is not: %v", err)
	}
	l.stop("db-0")
	l.awaitEnd("db-0")
	say(guest.Frozen{})
	if err := l.agent.SnapshotVolume(t.Context(), "one", "d"); err != nil || len(asks()) != 0 {
		t.Errorf("one that nobody uses: %v, a guest was asked %v", err, asks())
	}
	if got := snapshots("one"); !slices.Equal(got, []string{"a", "d"}) {
		t.Errorf("snapshots %v", got)
	}
}

func TestVolumesThatCannotBe(t *testing.T) {
	needMkfs(t)
	l := newLab(t)
	l.start()
	for i, tc := range []struct {
		more, stage, detail string
		bind                []string
	}{
		{"", "assignment", "has not said which volume of this host data is", nil},
		{"", "assignment", "cannot be the id of a volume", []string{"data=../x"}},
		{"", "assignment", "are both one of the host", []string{"data=one", "more=one"}},
		{"on_missing = \"fail\"", "disks", "volume data is to be one on this host, where it is missing", []string{"data=one"}},
	} {
		id := "db-" + string(rune('0'+i))
		l.assign("dev", id, l.app("db", "restart = \"never\"", "[volumes.data]", "path = \"/data\"", "size = \"64MiB\"", tc.more), bind(tc.bind...))
		if end := l.awaitEnd(id).End; end.Kind != causeStartFailed || end.Stage != tc.stage || !strings.Contains(end.Detail, tc.detail) {
			t.Errorf("%v: %v", tc.bind, end)
		}
	}
}
