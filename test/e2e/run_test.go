package e2e

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"
)

const runPatience = 2 * time.Minute

// TestRun runs one-offs of an app in microVMs of their own, one of them through a kill of server and agent, and leaves the
// app alone.
func TestRun(t *testing.T) {
	l := newLab(t)
	m := l.manifest("app", strings.Replace(web("app", freePort(t)), `schema = "v1"`, "schema = \"v1\"\nvars = [\"WHO\"]", 1))
	l.must("vars", "set", "WHO=me")
	l.must("deploy", "-f", m, "--image", l.push("app", "v1", workloadImage(t, "1", nil)))
	serves := l.instances()[0].ID

	if r := l.pinnace("run", "-a", "app", "--", "/workload", "exit", "42"); r.status != 42 || !strings.Contains(r.stdout, "exiting as told, with 42") || !strings.Contains(r.stderr, "one-off app-") {
		t.Errorf("exit status: %s", r)
	}
	if r := l.pinnace("run", "-a", "app", "--", "/not/there"); r.status != 127 {
		t.Errorf("a command that is not there: %s", r)
	}

	cmd := l.command("run", "-a", "app", "--", "/workload", "wait")
	out, talk := &lockedBuffer{}, &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, talk
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waiting := func() error {
		if out.String() != "waiting\n" {
			return errors.New(out.String() + talk.String())
		}
		return nil
	}
	l.eventually(runPatience, "the one-off runs", waiting)
	l.kill()
	l.start()
	// It runs on, and its caller has found it again: what it is told gets there.
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(runPatience):
		_ = cmd.Process.Kill()
		<-ended
		t.Errorf("it did not end after Ctrl-C\n%s", talk)
	}
	if got := cmd.ProcessState.ExitCode(); got != 143 && got != 130 || waiting() != nil {
		t.Errorf("status %d, output %q\n%s", got, out, talk)
	}

	if list := l.instances(); len(list) != 1 || list[0].ID != serves || list[0].State != "ready" || list[0].Attempt != 1 {
		t.Errorf("after all that: %+v, want %s ready", list, serves)
	}
	events := l.must("events", "--json")
	if strings.Count(events, `"type":"run.started"`) != 3 || strings.Count(events, `"type":"run.stopped"`) != 1 || strings.Contains(events, "/workload\",\"exit") {
		t.Errorf("the log has:\n%s", events)
	}
	if all := l.must("instances", "app", "--all"); strings.Count(all, " run ") != 3 {
		t.Errorf("there are:\n%s", all)
	}
}
