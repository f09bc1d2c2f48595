package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// run is a one-off of a release.
func run(id string, r *ReleaseCreated) *RunStarted {
	return &RunStarted{
		Instance: id, Environment: "dev", App: r.App, Release: r.Release, Host: testHost.Host, Program: "/app/server", Arguments: 1,
		Sealed: "sha256:" + strings.Repeat("ab", 32), Recipient: "age1me", TimeoutMilli: 60_000,
	}
}

// withApp is a log in which an app serves with one instance.
func withApp(t *testing.T) (*teller, *ReleaseCreated) {
	l := newTeller(t)
	r := testRelease(t, "api", "80", 1)
	l.tell(&EnvironmentCreated{Name: "dev"}, testHost, r, deploy("dep-1", r, ""))
	l.tell(&InstancesPlanned{Deployment: "dep-1", Start: []PlannedStart{{Instance: "api-1", Host: testHost.Host, Deployment: "dep-1", Release: r.Release}}})
	l.tell(&InstanceStarted{Instance: "api-1", Attempt: 1}, &InstanceReady{Instance: "api-1", Attempt: 1}, &DeploymentFinished{Deployment: "dep-1", Outcome: Succeeded})
	return l, r
}

func ids(all []*Instance) string {
	var out []string
	for _, i := range all {
		out = append(out, i.ID)
	}
	return strings.Join(out, " ")
}

// TestRun: a one-off takes room on its host and in the quota, is none of the app's instances, and leaves nothing but a
// record when it has ended.
func TestRun(t *testing.T) {
	l, r := withApp(t)
	before := *l.state.Booking(testHost.Host)
	l.tell(run("api-run", r))
	i := l.state.Instance("api-run")
	if i.Run == nil || !i.Task || i.Deployment != "" || !i.Run.Deadline.Equal(l.now.Add(time.Minute)) || i.Run.Actor != "admin" {
		t.Fatalf("got %+v, %+v", i, i.Run)
	}
	if got := l.state.Booking(testHost.Host); got.MemoryBytes != before.MemoryBytes+128<<20 || len(got.Instances) != 2 {
		t.Errorf("booked: %+v", got)
	}
	if q := l.state.Booked("dev"); q.Instances != 2 || q.MemoryBytes != 256<<20 {
		t.Errorf("of the quota: %+v", q)
	}
	if got := ids(l.state.Instances("dev", "api")); got != "api-1" {
		t.Errorf("the app has %s", got)
	}
	if got := ids(l.state.Runs("dev", "api")); got != "api-run" {
		t.Errorf("its one-offs are %q", got)
	}

	// Started, it is found with what it is now; no deployment can stop it.
	l.tell(&InstanceStarted{Instance: "api-run", Attempt: 1})
	if i := l.state.Runs("", "")[0]; i.StartedAttempt != 1 {
		t.Errorf("an old record is found: %+v", i)
	}
	l.tell(deploy("dep-2", r, "dep-1"))
	l.refused(&InstancesPlanned{Deployment: "dep-2", Stop: []string{"api-run"}}, "not an instance of api")

	l.tell(&RunStopped{Instance: "api-run", Reason: "its time was over", TimedOut: true})
	if i := l.state.Instance("api-run"); !i.Stop || i.Run.StopReason != "its time was over" || !i.Run.TimedOut {
		t.Errorf("got %+v, %+v", i, i.Run)
	}
	if !errors.Is(l.refused(&RunStopped{Instance: "api-run", Reason: "again"}, "stopping already"), ErrConflict) {
		t.Error("it is no conflict")
	}
	l.tell(&InstanceEnded{Instance: "api-run", Attempt: 1, Count: 1, Cause: Cause{Kind: "exited", Code: 3}, Final: true})
	if got := l.state.Booking(testHost.Host); got.MemoryBytes != before.MemoryBytes || len(got.Instances) != 1 {
		t.Errorf("it holds room after its end: %+v", got)
	}
	if running, ended := ids(l.state.Runs("", "")), ids(l.state.EndedRuns("dev", "api")); running != "" || ended != "api-run" {
		t.Errorf("running %q, ended %q", running, ended)
	}
	l.refused(&RunStopped{Instance: "api-run", Reason: "late"}, "not found")
	l.refused(&InstanceStarted{Instance: "api-run", Attempt: 2}, "ended for good")
}

func TestRunRefused(t *testing.T) {
	l, r := withApp(t)
	other := testRelease(t, "db", "81", 1)
	l.tell(other)
	for _, c := range []struct {
		change func(*RunStarted)
		want   string
	}{
		{func(p *RunStarted) { p.Environment = "prod" }, "not found"},
		{func(p *RunStarted) { p.App = "db" }, "app db in dev"},
		{func(p *RunStarted) { p.Release = other.Release }, "of app api"},
		{func(p *RunStarted) { p.Host = "elsewhere" }, "host"},
		{func(p *RunStarted) { p.Instance = "api-1" }, "exists"},
		{func(p *RunStarted) { p.Instance = "" }, "exists"},
		{func(p *RunStarted) { p.Program = "" }, "no command"},
		{func(p *RunStarted) { p.Arguments = -1 }, "no command"},
		{func(p *RunStarted) { p.TimeoutMilli = 999 }, "timeout"},
		{func(p *RunStarted) { p.TimeoutMilli = MaxRunTimeout.Milliseconds() + 1 }, "timeout"},
		{func(p *RunStarted) { p.Sealed = "nowhere" }, "sealed"},
		{func(p *RunStarted) { p.Recipient = "" }, "for whom"},
		{func(p *RunStarted) { p.Secrets = map[string]uint64{"more": 1} }, "other secret bundles"},
	} {
		p := run("api-run", r)
		c.change(p)
		l.refused(p, c.want)
	}
	l.refused(&RunStopped{Instance: "api-1", Reason: "it is none"}, "not found")
	l.tell(run("api-run", r))
	l.refused(&RunStopped{Instance: "api-run"}, "reason")
}

// TestRunsGoWithTheirApp: what is destroyed stops its one-offs, and waits for them.
func TestRunsGoWithTheirApp(t *testing.T) {
	l, r := withApp(t)
	l.tell(run("api-run", r), &EnvironmentDestroyed{Environment: "dev"})
	if i := l.state.Instance("api-run"); !i.Stop || i.Run.StopReason == "" {
		t.Errorf("got %+v", i)
	}
	l.refused(run("api-more", r), "being destroyed")
	l.tell(&InstanceEnded{Instance: "api-1", Attempt: 1, Count: 1, Planned: true, Final: true})
	if l.state.Environment("dev") == nil {
		t.Fatal("the environment is gone, and a one-off runs there")
	}
	l.tell(&InstanceEnded{Instance: "api-run", Attempt: 1, Count: 1, Planned: true, Final: true})
	if l.state.Environment("dev") != nil || l.state.Instance("api-run") != nil {
		t.Error("something is left")
	}
}

// TestRunsWithAHost: a host that is removed takes its one-offs with it, when that is known.
func TestRunsWithAHost(t *testing.T) {
	l, r := withApp(t)
	l.tell(run("api-run", r))
	l.refused(&HostRemoved{Host: testHost.Host, Lost: []string{"api-1"}}, "api-run")
	l.tell(&HostRemoved{Host: testHost.Host, Lost: []string{"api-1", "api-run"}})
	if i := l.state.Instance("api-run"); !i.Final || i.LastEnd.Cause.Kind != "lost" || len(l.state.Runs("", "")) != 0 {
		t.Errorf("got %+v", i)
	}
}

// TestRunsAreForgotten: of many the newest are kept, and a snapshot has those that run.
func TestRunsAreForgotten(t *testing.T) {
	l, r := withApp(t)
	for n := range keptRuns + 3 {
		id := fmt.Sprintf("api-run-%02d", n)
		l.tell(run(id, r), &InstanceEnded{Instance: id, Attempt: 1, Count: 1, Final: true})
	}
	if got := l.state.EndedRuns("dev", "api"); len(got) != keptRuns || got[0].ID != "api-run-03" || l.state.Instance("api-run-02") != nil {
		t.Errorf("%d are kept, the first is %s", len(got), got[0].ID)
	}
	l.tell(run("api-last", r))
	b, err := l.state.Encode()
	if err != nil {
		t.Fatal(err)
	}
	s, err := DecodeState(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := ids(s.Runs("dev", "api")); got != "api-last" || ids(l.state.Clone().Runs("dev", "")) != got {
		t.Errorf("the snapshot has %q", got)
	}
	// What is taken back is taken back everywhere.
	if err := l.state.Revert(l.state.Seq() - 1); err != nil || len(l.state.Runs("", "")) != 0 {
		t.Errorf("%v, %q", err, ids(l.state.Runs("", "")))
	}
}

// TestSecretsOfARun: the version that a one-off runs with is not destroyed.
func TestSecretsOfARun(t *testing.T) {
	l := newTeller(t)
	r := testRelease(t, "api", "80", 1, "[secrets.one]\npath = \"/run/one\"")
	sealed := "sha256:" + strings.Repeat("cd", 32)
	put := func(version uint64) *SecretPut {
		return &SecretPut{Environment: "dev", Bundle: "one", Version: version, Keys: []string{"A"}, Sealed: sealed, Recipient: "age1me"}
	}
	start := deploy("dep-1", r, "")
	start.Secrets = map[string]uint64{"one": 2}
	l.tell(&EnvironmentCreated{Name: "dev"}, testHost, r, put(1), put(2), start)
	old := run("api-run", r)
	old.Secrets = map[string]uint64{"one": 1}
	l.tell(old)
	l.refused(&SecretRevoked{Environment: "dev", Bundle: "one", Versions: []uint64{1}}, "one-off api-run")
	l.tell(&InstanceEnded{Instance: "api-run", Attempt: 1, Count: 1, Final: true}, &SecretRevoked{Environment: "dev", Bundle: "one", Versions: []uint64{1}})
}
