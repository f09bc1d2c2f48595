package agent

import (
	"slices"
	"strings"
	"testing"

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
