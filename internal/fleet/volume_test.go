package fleet

import (
	"errors"
	"strings"
	"testing"
)

const withVolume = `volumes.data = { path = "/data", size = "64MiB" }`

// volumeStory goes on where story ends: the life of a volume, and the end of its app and its environment.
func volumeStory(t *testing.T) []Payload {
	db := testRelease(t, "db", "81", 4, withVolume)
	first := deploy("dep-db", db, "")
	return []Payload{
		testHost, db, &QuotaSet{Environment: "dev", Quota: Quota{Instances: 4, MemoryBytes: 1 << 30, CPUMilli: 2000}}, first,
		bound("vol-1", 0), start("dep-db", "db-1", db), &InstanceStarted{Instance: "db-1", Attempt: 1}, succeeded("dep-db"),
		&VolumeGrown{Volume: "vol-1", SizeBytes: 128 << 20}, &SnapshotTaken{Volume: "vol-1", Snapshot: "before", SizeBytes: 64 << 20},
		&VolumeExported{Volume: "vol-1", Snapshot: "before"}, &SnapshotDeleted{Volume: "vol-1", Snapshot: "before"},
		&VolumeBound{Volume: "vol-2", Environment: "dev", App: "db", Name: "data", Ordinal: 1, Host: "h1", SizeBytes: 64 << 20, SHA256: strings.Repeat("a", 64)},
		&VolumeDetached{Volume: "vol-2"}, &VolumeDeleted{Volume: "vol-2"}, &VolumeRemoved{Volume: "vol-2"},
		&AppDestroyed{Environment: "dev", App: "db"}, ended("db-1"), &EnvironmentDestroyed{Environment: "dev"},
	}
}

func bound(id string, ordinal int) *VolumeBound {
	return &VolumeBound{Volume: id, Environment: "dev", App: "db", Name: "data", Ordinal: ordinal, Host: "h1", SizeBytes: 64 << 20}
}

func ended(instance string) *InstanceEnded {
	return &InstanceEnded{Instance: instance, Attempt: 1, Count: 1, Cause: Cause{Kind: "exited"}, Planned: true, Final: true}
}

// newDB is a state with two hosts and a deployment of an app with a volume under way.
func newDB(t *testing.T) (*teller, *ReleaseCreated) {
	l := newTeller(t)
	db := testRelease(t, "db", "81", 1, withVolume)
	other := *testHost
	other.Host = "h2"
	l.tell(&EnvironmentCreated{Name: "dev"}, testHost, &other, db, deploy("dep-1", db, ""))
	return l, db
}

func TestVolumes(t *testing.T) {
	l, db := newDB(t)
	l.refused(start("dep-1", "db-1", db), "volume data is bound to no host")
	l.tell(bound("vol-1", 0))
	l.refused(bound("vol-1", 1), "exists")
	l.refused(bound("vol-2", 0), "is vol-1")
	elsewhere := start("dep-1", "db-1", db)
	elsewhere.Start[0].Host = "h2"
	l.refused(elsewhere, "is on host h1, not on h2")
	l.tell(start("dep-1", "db-1", db))
	if v := l.state.VolumeOf("dev", "db", 0, "data"); v == nil || v.Made || v.Host != "h1" {
		t.Fatalf("before its instance started: %+v", v)
	}
	l.tell(&InstanceStarted{Instance: "db-1", Attempt: 1}, succeeded("dep-1"))
	if !l.state.Volume("vol-1").Made {
		t.Error("an instance has run with the volume, and it need not be there")
	}
	l.refused(&VolumeGrown{Volume: "vol-1", SizeBytes: 64 << 20}, "volumes only grow")
	held := (*HeldError)(nil)
	if err := l.refused(&VolumeDetached{Volume: "vol-1"}, "is data of instance db-1"); !errors.As(err, &held) {
		t.Errorf("got %T", err)
	}
	l.refused(&VolumeDeleted{Volume: "vol-1"}, "only one that is detached")
	l.refused(&VolumeRemoved{Volume: "vol-1"}, "not found")
	l.refused(&SnapshotTaken{Volume: "vol-1", Snapshot: "../x"}, "want ^")
	l.tell(&SnapshotTaken{Volume: "vol-1", Snapshot: "a"})
	l.refused(&SnapshotTaken{Volume: "vol-1", Snapshot: "a"}, "exists")
	l.refused(&VolumeExported{Volume: "vol-1", Snapshot: "b"}, "not found")

	// A release that wants more has it grow; one that wants less leaves it.
	bigger := testRelease(t, "db", "81", 2, strings.Replace(withVolume, "64MiB", "96MiB", 1))
	l.tell(&InstancesPlanned{Deployment: "dep-1", Stop: []string{"db-1"}}, ended("db-1"), bigger, deploy("dep-2", bigger, "dep-1"), start("dep-2", "db-2", bigger))
	if size := l.state.Volume("vol-1").SizeBytes; size != 96<<20 {
		t.Errorf("grown to %d", size)
	}
	l.tell(&InstancesPlanned{Deployment: "dep-2", Stop: []string{"db-2"}}, ended("db-2"), succeeded("dep-2"), deploy("dep-3", db, "dep-2"), start("dep-3", "db-3", db))
	if size := l.state.Volume("vol-1").SizeBytes; size != 96<<20 {
		t.Errorf("by a smaller release it became %d", size)
	}

	l.tell(&InstancesPlanned{Deployment: "dep-3", Stop: []string{"db-3"}}, ended("db-3"), succeeded("dep-3"), &VolumeDetached{Volume: "vol-1"}, bound("vol-2", 0))
	if v := l.state.VolumeOf("dev", "db", 0, "data"); v == nil || v.ID != "vol-2" {
		t.Errorf("after a detach the volume is %+v", v)
	}
	l.tell(&VolumeDeleted{Volume: "vol-1"})
	l.refused(&VolumeGrown{Volume: "vol-1", SizeBytes: 1 << 30}, "is being removed")
	l.tell(&VolumeRemoved{Volume: "vol-1"})
	b, err := l.state.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := DecodeState(b)
	if err != nil || again.VolumeOf("dev", "db", 0, "data") == nil {
		t.Errorf("a copy of the state: %v", err)
	}
	l.tell(&HostRemoved{Host: "h1"})
	if len(l.state.Volumes("dev")) != 0 {
		t.Error("volumes outlive their host")
	}
}

func TestDestroy(t *testing.T) {
	l, db := newDB(t)
	busy := (*BusyError)(nil)
	if err := l.refused(&AppDestroyed{Environment: "dev", App: "db"}, "one at a time"); !errors.As(err, &busy) {
		t.Errorf("got %T", err)
	}
	l.tell(bound("vol-1", 0), start("dep-1", "db-1", db), &InstanceStarted{Instance: "db-1", Attempt: 1}, succeeded("dep-1"))
	l.tell(&AppPlaced{Environment: "dev", App: "db", Labels: map[string]string{"zone": "a"}}, bound("vol-2", 1))
	l.refused(&AppDestroyed{Environment: "dev", App: "nothing"}, "not found")
	l.tell(&AppDestroyed{Environment: "dev", App: "db"})
	gone := (*DestroyedError)(nil)
	for _, p := range []Payload{deploy("dep-2", db, "dep-1"), start("dep-1", "db-2", db), bound("vol-3", 2), &AppDestroyed{Environment: "dev", App: "db"}} {
		if err := l.refused(p, "is being destroyed"); !errors.As(err, &gone) {
			t.Errorf("%s: got %T", p.EventType(), err)
		}
	}
	if i := l.state.Instance("db-1"); i == nil || !i.Stop {
		t.Fatalf("what runs was not asked to stop: %+v", i)
	}
	l.tell(ended("db-1"))
	if l.state.App("dev", "db") != nil || l.state.Instance("db-1") != nil || len(l.state.Environment("dev").Placement) != 0 {
		t.Error("the app is still there")
	}
	if l.state.Deployment("dep-1") == nil || len(l.state.Releases("db")) != 1 {
		t.Error("its history is gone")
	}
	for _, v := range l.state.VolumesOn("h1") {
		if v.DeletedAt.IsZero() || v.Attached() {
			t.Errorf("volume %s is not to be removed", v.ID)
		}
	}
	l.tell(&VolumeRemoved{Volume: "vol-1"}, deploy("dep-2", db, ""), bound("vol-3", 0), start("dep-2", "db-2", db), succeeded("dep-2"))
	if n := l.state.App("dev", "db").Index; n != 1 {
		t.Errorf("made again, the app has index %d", n)
	}

	// The environment goes with its last instance.
	l.tell(&EnvironmentDestroyed{Environment: "dev"})
	l.refused(&EnvironmentDestroyed{Environment: "dev"}, "is being destroyed")
	if l.state.Environment("dev") == nil {
		t.Fatal("the environment is gone before its instances")
	}
	l.tell(ended("db-2"))
	if l.state.Environment("dev") != nil || len(l.state.Apps("")) != 0 {
		t.Error("the environment is still there")
	}
	l.tell(&EnvironmentCreated{Name: "dev"})
}

func TestQuota(t *testing.T) {
	l, db := newDB(t)
	l.refused(&QuotaSet{Environment: "prod"}, "not found")
	l.refused(&QuotaSet{Environment: "dev", Quota: Quota{Instances: -1}}, "negative")
	l.tell(&QuotaSet{Environment: "dev", Quota: Quota{Instances: 3}}, bound("vol-1", 0), start("dep-1", "db-1", db))
	if got := l.state.Environment("dev").Quota.Instances; got != 3 {
		t.Errorf("the quota is %d", got)
	}
	if got := l.state.Booked("dev"); got.Instances != 1 || got.MemoryBytes != 128<<20 || got.CPUMilli != 250 {
		t.Errorf("booked %+v", got)
	}
}
