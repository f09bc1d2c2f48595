package fleet

import (
	"strings"
	"testing"
)

func TestVirtualAddresses(t *testing.T) {
	tests := []struct {
		index  int
		v4, v6 string
	}{
		{0, "10.101.0.1", "fd00:7069:6e6e:101::1"},
		{253, "10.101.0.254", "fd00:7069:6e6e:101::fe"},
		{254, "10.101.1.1", "fd00:7069:6e6e:101::ff"},
		{MaxApps - 1, "10.101.255.254", "fd00:7069:6e6e:101::fe00"},
	}
	for _, tt := range tests {
		v4, v6 := (&App{Index: tt.index}).VirtualAddresses()
		if v4.String() != tt.v4 || v6.String() != tt.v6 {
			t.Errorf("%d: got %s and %s, want %s and %s", tt.index, v4, v6, tt.v4, tt.v6)
		}
	}
}

func TestRollbackTarget(t *testing.T) {
	l := newTeller(t)
	one, two, three := testRelease(t, "api", "80", 1), testRelease(t, "api", "80", 2), testRelease(t, "api", "80", 3)
	l.tell(&EnvironmentCreated{Name: "dev"}, testHost, one, two, three)
	app := func() *App { return l.state.App("dev", "api") }
	want := func(id, to string) {
		t.Helper()
		d, err := l.state.RollbackTarget(app(), to)
		if id == "" {
			if err == nil {
				t.Errorf("got %s, want none", d.ID)
			}
			return
		}
		if err != nil || d.ID != id {
			t.Errorf("got %+v, %v, want %s", d, err, id)
		}
	}
	finish := func(id string, o DeploymentState) { l.tell(&DeploymentFinished{Deployment: id, Outcome: o}) }

	l.tell(deploy("dep-1", one, ""))
	want("", "")
	finish("dep-1", Succeeded)
	want("", "")
	l.tell(deploy("dep-2", two, "dep-1"))
	finish("dep-2", Succeeded)
	want("dep-1", "")
	l.tell(deploy("dep-3", three, "dep-2"))
	finish("dep-3", RolledBack)
	want("dep-1", "") // what failed is not live
	want("", "dep-3")
	want("", "dep-9")
	l.tell(deploy("dep-4", three, "dep-2"))
	finish("dep-4", Mixed)
	want("dep-2", "") // to what was whole
	l.tell(&DeploymentStarted{Deployment: "dep-5", Environment: "dev", App: "api", Kind: KindStop, Release: two.Release, Previous: "dep-2"})
	finish("dep-5", Succeeded)
	want("dep-2", "") // starts again what was stopped
	want("", "dep-5")
	back := deploy("dep-6", one, "dep-5")
	back.Kind, back.Target = KindRollback, "dep-1"
	l.tell(back)
	finish("dep-6", Succeeded)
	want("dep-2", "")
	want("dep-1", "dep-1")
}

func TestReleaseQueries(t *testing.T) {
	l := newTeller(t)
	one, two, web := testRelease(t, "api", "80", 1), testRelease(t, "api", "80", 2), testRelease(t, "web", "81", 3)
	l.tell(one, two, web)
	if all := l.state.Releases("api"); len(all) != 2 || string(all[0].ID) != two.Release {
		t.Errorf("got %d releases, want 2, the newest first", len(all))
	}
	if n := len(l.state.Releases("")); n != 3 {
		t.Errorf("got %d releases", n)
	}
	digits := strings.TrimPrefix(one.Release, "sha256:")
	if found := l.state.ReleasesByPrefix(digits[:12]); len(found) != 1 || string(found[0].ID) != one.Release {
		t.Errorf("got %v", found)
	}
	if n := len(l.state.ReleasesByPrefix("")); n != 3 {
		t.Errorf("got %d releases", n)
	}
}
