package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// reported are the ids of the volumes that the agent has told the server of last; the server's state is held.
func (l *lab) reported() (ids []string) {
	for _, v := range l.server.last.GetVolumes() {
		ids = append(ids, v.GetId())
	}
	return ids
}

// TestVolumesOfTheServer: what the server says of a volume beside the manifest counts, and what it wants removed is
// removed as soon as nobody has it.
func TestVolumesOfTheServer(t *testing.T) {
	needMkfs(t)
	l := newLab(t).start()
	rel := l.app("db", atOnceReady, "restart = \"never\"", "[volumes.data]", "path = \"/data\"", "size = \"64MiB\"")
	l.assign("dev", "db-0", rel, bind("data=one"), func(a *pinnacev1.Assignment) { a.Volumes[0].SizeBytes = 96 << 20 })
	l.awaitState("db-0", stateReady)
	if size := l.volume("one").Size; size != 96<<20 {
		t.Errorf("the volume has %d bytes", size)
	}
	l.eventually("the server hears of the volume", func() bool { return slices.Equal(l.reported(), []string{"one"}) })

	l.assign("dev", "db-1", rel, bind("data=two"), func(a *pinnacev1.Assignment) { a.Volumes[0].MustExist = true })
	if end := l.awaitEnd("db-1").End; end.Stage != "disks" || !strings.Contains(end.Detail, "volume data was two on this host, and is missing") {
		t.Errorf("a volume that is gone: %v", end)
	}

	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) { set.RemovedVolumes = []string{"one", "never-was"} })
	l.stop("db-0")
	l.eventually("the volume is removed", func() bool { return len(l.reported()) == 0 })
}

// TestUnclaimedVolumes: an imported volume that nobody has had is told of as such when it has waited for long enough.
func TestUnclaimedVolumes(t *testing.T) {
	needMkfs(t)
	l := newLab(t).start()
	rel := l.app("db", atOnceReady, "restart = \"never\"", "[volumes.data]", "path = \"/data\"", "size = \"64MiB\"")
	l.assign("dev", "db-0", rel, bind("data=one"))
	l.awaitState("db-0", stateReady)
	mark := filepath.Join(l.agent.volumesDir(), "one", "unclaimed")
	unclaimed := func(since time.Duration, want bool) {
		t.Helper()
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-since)
		if err := os.Chtimes(mark, at, at); err != nil {
			t.Fatal(err)
		}
		l.agent.shelf.stale()
		reports, ok := l.agent.volumeReports()
		if !ok || len(reports) != 1 || reports[0].Unclaimed != want {
			t.Errorf("imported %s ago: got %v, want %t", since, reports, want)
		}
	}
	unclaimed(time.Minute, false)
	unclaimed(unclaimedFor+time.Minute, true)
	unclaimed(-time.Hour, false)
}
