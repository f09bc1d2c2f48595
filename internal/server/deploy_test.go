package server

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
)

func TestDeployRedeployRollback(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	one, two := p.release(text("api", 80, ""), "v1"), p.release(text("api", 80, ""), "v2")

	release := a.hold()
	d := p.deploy("dev", one)
	p.pulls("dev")
	release()
	story, d, _ := p.watch(d.GetId())
	if d.GetState() != "succeeded" {
		t.Fatalf("ended %s\n%s", d.GetState(), story)
	}
	first := p.serves("dev", one)
	for _, part := range []string{"deploy rel-", "placed on h1", first.GetId() + " pulling: layer 1 of 1", first.GetId() + " ready in ", "of api serves"} {
		if !strings.Contains(story, part) {
			t.Errorf("the story has no %q:\n%s", part, story)
		}
	}
	if first.GetBooted().GetKernelVersion() != "6.12" || first.GetAttempt() != 1 {
		t.Errorf("got %v", first)
	}

	again, err := p.client.Deploy(t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: one}))
	if err != nil || !again.Msg.GetUnchanged() || again.Msg.GetDeployment().GetId() != d.GetId() {
		t.Errorf("deploying what is live: %v, %v", again, err)
	}

	story, d, _ = p.watch(p.deploy("dev", two).GetId())
	if d.GetState() != "succeeded" || !strings.Contains(story, "instance "+first.GetId()+" stopped") {
		t.Fatalf("ended %s\n%s", d.GetState(), story)
	}
	second := p.serves("dev", two)
	if got := a.running(); len(got) != 1 || got[0] != second.GetId() {
		t.Errorf("the host runs %v", got)
	}

	back, err := p.client.Rollback(t.Context(), connect.NewRequest(&pb.RollbackRequest{Environment: "dev", App: "api"}))
	if err != nil {
		t.Fatal(err)
	}
	story, d, _ = p.watch(back.Msg.GetDeployment().GetId())
	if d.GetState() != "succeeded" || d.GetKind() != "rollback" || d.GetRelease() != one {
		t.Fatalf("got %v\n%s", d, story)
	}
	p.serves("dev", one)

	stop, err := p.client.Stop(t.Context(), connect.NewRequest(&pb.StopRequest{Environment: "dev", App: "api"}))
	if err != nil {
		t.Fatal(err)
	}
	if story, d, _ = p.watch(stop.Msg.GetDeployment().GetId()); d.GetState() != "succeeded" || len(p.instances("dev", false)) != 0 {
		t.Fatalf("got %v\n%s", d, story)
	}
	if n := len(p.instances("dev", true)); n != 3 {
		t.Errorf("%d instances with those that ended, want 3", n)
	}
	stopped, err := p.client.Stop(t.Context(), connect.NewRequest(&pb.StopRequest{Environment: "dev", App: "api"}))
	if err != nil || stopped.Msg.GetDeployment().GetId() != d.GetId() {
		t.Errorf("stopping what is stopped: %v, %v", stopped, err)
	}
	if _, d, _ = p.watch(p.deploy("dev", one).GetId()); d.GetState() != "succeeded" || d.GetCount() != 1 {
		t.Errorf("deploying after a stop: %v", d)
	}
}

func TestFailingDeployRollsBack(t *testing.T) {
	tests := []struct{ fate, more, reason string }{
		{"crash", "", " times: exited with code 1"},
		{"final", `restart = "never"`, "ended for good: exited with code 3"},
		{"no-entrypoint", "", " could not be started (exec): /app: no such file or directory"},
		{"stuck", `rollout.boot_timeout = "1s"`, "was not ready within boot_timeout (1s)"},
	}
	for _, tt := range tests {
		t.Run(tt.fate, func(t *testing.T) {
			p := newPlane(t)
			p.environment("dev")
			a := p.agent("h1")
			one := p.release(text("api", 80, ""), "v1")
			p.watch(p.deploy("dev", one).GetId())
			before := p.serves("dev", one)

			story, d, lines := p.watch(p.deploy("dev", p.release(rootLast(text("api", 80, ""), tt.more), tt.fate)).GetId())
			if d.GetState() != "rolled-back" || !strings.Contains(d.GetReason(), tt.reason) {
				t.Fatalf("ended %s: %s\n%s", d.GetState(), d.GetReason(), story)
			}
			if after := p.serves("dev", one); after.GetId() != before.GetId() {
				t.Errorf("instance %s was replaced by %s for nothing", before.GetId(), after.GetId())
			}
			if got := a.running(); len(got) != 1 {
				t.Errorf("the host runs %v", got)
			}
			if !strings.Contains(story, "rolling back because") || !strings.Contains(story, "rolled back;") {
				t.Errorf("story:\n%s", story)
			}
			if tt.fate == "crash" {
				for _, l := range lines {
					if strings.Contains(l.GetText(), "attempt 1") && (len(l.GetLogTail()) != 2 || l.GetLogTail()[0] != "panic: oh no" || l.GetLevel() != levelError) {
						t.Errorf("got %v, want the last log lines", l)
					}
				}
			}
		})
	}
}

// rootLast puts a line where it belongs to no table.
func rootLast(manifest, line string) string {
	return strings.Replace(manifest, "\n", "\n"+line+"\n", 1)
}

// TestHold checks that the old instance serves until the new one has held.
func TestHold(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	source := strings.Replace(text("api", 80, ""), `rollout.hold = "0s"`, `rollout.hold = "500ms"`, 1)
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	story, d, lines := p.watch(p.deploy("dev", p.release(source, "v2")).GetId())
	if d.GetState() != "succeeded" || !strings.Contains(story, ", holding for 500ms") {
		t.Fatalf("ended %s\n%s", d.GetState(), story)
	}
	var ready, stop *pb.WatchDeploymentResponse
	for _, l := range lines {
		switch {
		case strings.Contains(l.GetText(), " ready in "):
			ready = l
		case strings.Contains(l.GetText(), " is asked to stop"):
			stop = l
		}
	}
	if held := stop.GetAt().AsTime().Sub(ready.GetAt().AsTime()); held < 450*time.Millisecond {
		t.Errorf("the old instance was stopped %s after the new one was ready", held)
	}
}

func TestFirstDeployFails(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	story, d, _ := p.watch(p.deploy("dev", p.release(text("api", 80, ""), "crash")).GetId())
	if d.GetState() != "failed" || len(p.instances("dev", false)) != 0 {
		t.Fatalf("ended %s\n%s", d.GetState(), story)
	}
	p.eventually("the host stops it", func() bool { return len(a.running()) == 0 })
	if _, err := p.client.Rollback(t.Context(), connect.NewRequest(&pb.RollbackRequest{Environment: "dev", App: "api"})); err == nil {
		t.Error("rolled back to nothing")
	}
	if _, d, _ = p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId()); d.GetState() != "succeeded" {
		t.Errorf("the next deploy ended %s", d.GetState())
	}
}

func TestPauseLeavesItMixed(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	_, d, _ := p.watch(p.deploy("dev", p.release(text("api", 80, `rollout.on_failure = "pause"`), "crash")).GetId())
	if d.GetState() != "mixed" || !strings.Contains(d.GetReason(), "1 new and 1 previous instances run") {
		t.Fatalf("got %v", d)
	}
	if n := len(p.instances("dev", false)); n != 2 {
		t.Fatalf("%d instances, want 2", n)
	}
	back, err := p.client.Rollback(t.Context(), connect.NewRequest(&pb.RollbackRequest{Environment: "dev", App: "api"}))
	if err != nil {
		t.Fatal(err)
	}
	if story, d, _ := p.watch(back.Msg.GetDeployment().GetId()); d.GetState() != "succeeded" {
		t.Fatalf("ended %s\n%s", d.GetState(), story)
	}
	p.serves("dev", one)
}

func TestCompletedIsNotFailed(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	job := `schema = "v1"
name = "job"
restart = "never"
resources = { memory = "128MiB" }
`
	story, d, _ := p.watch(p.deploy("dev", p.release(job, "completes")).GetId())
	if d.GetState() != "succeeded" || !strings.Contains(story, " completed") {
		t.Fatalf("ended %s\n%s", d.GetState(), story)
	}
	all := p.instances("dev", true)
	if len(all) != 1 || all[0].GetState() != stateEnded || all[0].GetLastEnd().GetKind() != "exited" {
		t.Errorf("got %v", all)
	}
}

// TestServerIsKilledMidRollout ends the server while a rollout waits, and starts another on the same log.
func TestServerIsKilledMidRollout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	p := newPlaneOn(t, func() eventlog.Engine { return sqlite.New(sqlite.Options{Dir: dir}) })
	p.environment("dev")
	a := p.agent("h1")
	one, two := p.release(text("api", 80, ""), "v1"), p.release(text("api", 80, ""), "v2")
	p.watch(p.deploy("dev", one).GetId())
	old := p.serves("dev", one)

	release := a.hold()
	d := p.deploy("dev", two)
	p.pulls("dev")
	p.kill()
	if got := a.running(); len(got) != 2 {
		t.Errorf("while the server is away the host runs %v, want both", got)
	}
	p.boot()
	active, err := p.client.GetStatus(t.Context(), connect.NewRequest(&pb.GetStatusRequest{Environment: "dev", App: "api"}))
	if err != nil || active.Msg.GetApps()[0].GetActive().GetId() != d.GetId() {
		t.Fatalf("got %v, %v, want deployment %s to be active", active, err, d.GetId())
	}
	release()
	story, done, _ := p.watch(d.GetId())
	if done.GetState() != "succeeded" {
		t.Fatalf("ended %s\n%s", done.GetState(), story)
	}
	p.serves("dev", two)
	for _, part := range []string{"deploy rel-", "placed on h1", "instance " + old.GetId() + " stopped"} {
		if !strings.Contains(story, part) {
			t.Errorf("the story has no %q:\n%s", part, story)
		}
	}
	// Each attempt is in the log once, although the host reported it to two servers.
	count := map[string]int{}
	for e, err := range p.ledger.log.Read(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		count[e.Type]++
	}
	if count["instance.started"] != 2 || count["instance.ready"] != 2 || count["instance.ended"] != 1 || count["host.joined"] != 1 {
		t.Errorf("got %v", count)
	}
}

// TestServerIsKilledOnTheWayBack ends the server between the decision to turn back and the end of the new
// instance.
func TestServerIsKilledOnTheWayBack(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	d := p.deploy("dev", p.release(text("api", 80, ""), "crash"))
	p.eventually("the rollout turns back", func() bool {
		out, err := p.client.GetStatus(t.Context(), connect.NewRequest(&pb.GetStatusRequest{Environment: "dev", App: "api"}))
		active := out.Msg.GetApps()[0].GetActive()
		return err == nil && (active == nil || active.GetState() == "rolling-back")
	})
	p.kill()
	p.boot()
	story, done, _ := p.watch(d.GetId())
	if done.GetState() != "rolled-back" {
		t.Fatalf("ended %s\n%s", done.GetState(), story)
	}
	// A host that the server has not heard of yet is not waited for.
	p.eventually("one instance is left, and ready", func() bool {
		left := p.instances("dev", false)
		return len(left) == 1 && left[0].GetState() == stateReady && len(a.running()) == 1
	})
	p.serves("dev", one)
}
