package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// endsImage is an image whose process is one of the workload's endings.
func endsImage(t *testing.T, args ...string) v1.Image {
	return workloadImage(t, "1", func(c *v1.Config) { c.Cmd = args })
}

// TestEnds runs what is a burden to its platform, and has each told by the cause that is true.
func TestEnds(t *testing.T) {
	l := newLab(t)
	tests := []struct {
		args   []string
		kind   string
		code   int
		says   []string // in the words of why
		output string   // in the instance's logs
	}{
		{args: []string{"exit", "0"}, kind: "exited", code: 0, says: []string{"exited with status 0"}, output: "exiting as told, with 0"},
		{args: []string{"exit", "41"}, kind: "exited", code: 41, says: []string{"exited with status 41", "exiting as told"}},
		{args: []string{"abort"}, kind: "signalled", code: 137, says: []string{"SIGKILL", "killing myself"}},
		{args: []string{"eat"}, kind: "guest_oom", code: 137, says: []string{"ran out of memory", "the guest's kernel killed process", `"workload"`, "have eaten"}},
		{args: []string{"bomb"}, kind: "guest_oom", code: 137, says: []string{"ran out of memory", "forking"}},
		{args: []string{"fill"}, kind: "exited", code: 28, says: []string{"exited with status 28", "no space left on device"}},
		// The switch that takes the kernel down is not the workload's. That a panic is told as one is the drivers' suite's.
		{args: []string{"panic"}, kind: "exited", code: 1, says: []string{"exited with status 1", "/proc/sysrq-trigger: read-only file system"}},
	}
	names := make([]string, len(tests))
	for i, tt := range tests {
		names[i] = "end-" + strings.Join(tt.args, "-")
		m := l.manifest(names[i], fmt.Sprintf(`schema = "v1"
name = %q
resources = { memory = "128MiB", disk = "64MiB" }
restart = "never"
rollout = { hold = "0s", boot_timeout = "5m", deadline = "20m", on_failure = "pause" }
`, names[i]))
		l.must("deploy", "--no-wait", "-f", m, "--image", l.push(names[i], "v1", endsImage(t, tt.args...)))
		if i%3 == 2 || i == len(tests)-1 { // all at once would take this machine's memory and patience
			l.awaitEnds(names[:i+1])
		}
	}
	all := l.instances("--all")
	for i, tt := range tests {
		at := slices.IndexFunc(all, func(in instance) bool { return in.App == names[i] })
		if at < 0 {
			t.Errorf("%s is not there", names[i])
			continue
		}
		end := all[at].LastEnd
		if end == nil || end.Kind != tt.kind || end.Code != tt.code || end.Planned {
			t.Errorf("%s: got %+v, want %s with code %d", names[i], end, tt.kind, tt.code)
		}
		why := l.must("why", all[at].ID)
		for _, want := range tt.says {
			if !strings.Contains(why, want) {
				t.Errorf("%s: why does not say %q:\n%s", names[i], want, why)
			}
		}
		t.Logf("%s:\n%s", names[i], why)
		if out := l.must("logs", names[i]); !strings.Contains(out, tt.output) {
			t.Errorf("%s: the logs do not have %q:\n%s", names[i], tt.output, out)
		}
	}
	l.eventually(time.Minute, "nothing is left of them", func() error {
		if n := count(t, filepath.Join(l.dir, "run", "agent", "vm", "*")); n > 0 {
			return fmt.Errorf("%d machines", n)
		}
		return nil
	})
}

// awaitEnds waits until every app's instance has ended.
func (l *lab) awaitEnds(apps []string) {
	l.t.Helper()
	l.eventually(6*time.Minute, fmt.Sprintf("%v have ended", apps), func() error {
		all := l.instances("--all")
		for _, app := range apps {
			if !slices.ContainsFunc(all, func(i instance) bool { return i.App == app && i.LastEnd != nil }) {
				return fmt.Errorf("%s runs still", app)
			}
		}
		return nil
	})
}

// TestZombiesAndStop has a process with 200 children that it does not wait for, each of which leaves one to init: it runs
// on, init has waited for those that are its own, and a stop ends it in order. What ignores the stop signal is killed
// when its grace is over, and that is what is said.
func TestZombiesAndStop(t *testing.T) {
	l := newLab(t)
	for _, name := range []string{"zombies", "ignore"} {
		m := l.manifest(name, fmt.Sprintf(`schema = "v1"
name = %q
resources = { memory = "192MiB", disk = "64MiB" }
rollout = { hold = "0s", boot_timeout = "5m", deadline = "20m" }
stop = { drain = "0s", timeout = "2s" }
`, name))
		l.must("deploy", "-f", m, "--image", l.push(name, "v1", endsImage(t, name)))
	}
	l.awaitOutput("zombies", "200 zombies of mine, 0 of init's")
	l.awaitOutput("ignore", "ignoring SIGTERM")
	l.must("stop", "zombies")
	l.must("stop", "ignore")
	for _, i := range l.instances("--all") {
		want, code, detail := "signalled", 137, "killed, because it had not stopped within 2s"
		if i.App == "zombies" {
			want, code, detail = "exited", 0, ""
		}
		if e := i.LastEnd; e == nil || e.Kind != want || e.Code != code || !e.Planned || e.Detail != detail || i.Attempt != 1 {
			t.Errorf("%s: %+v, want %s with code %d (%s)", i.App, e, want, code, detail)
		}
		t.Log(l.must("why", i.ID))
	}
}

// awaitOutput waits until an app has said something.
func (l *lab) awaitOutput(app, want string) {
	l.t.Helper()
	l.eventually(3*time.Minute, app+" says "+want, func() error {
		if out := l.must("logs", app); !strings.Contains(out, want) {
			return fmt.Errorf("it said %q", tail(out))
		}
		return nil
	})
}
