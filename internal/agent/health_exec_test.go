package agent

import (
	"strings"
	"sync"
	"testing"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
)

// TestHealthByCommand follows an instance whose health commands tell, from its start to its end. What they write is told
// to those who look, and is not in the cause's detail, which the event log keeps.
func TestHealthByCommand(t *testing.T) {
	var mu sync.Mutex
	answers := map[string]guest.ExecResult{"/ready": {Code: 3, Output: []byte("no \x1b[2Jdatabase\n")}}
	answer := func(command string, r guest.ExecResult) {
		mu.Lock()
		defer mu.Unlock()
		answers[command] = r
	}
	l := newLab(t)
	l.runs("api", playing(guesttest.Workload{Exec: func(argv []string) guest.ExecResult {
		mu.Lock()
		defer mu.Unlock()
		return answers[argv[0]]
	}}))
	l.start()
	l.assign("dev", "api-1", l.app("api",
		`health.ready = { type = "exec", command = ["/ready", "-v"], interval = "1s", timeout = "1s", pass = 2, fail = 1 }`,
		`health.live = { type = "exec", command = ["/live"], interval = "1s", timeout = "1s", fail = 2 }`))
	message := func(state, want string) {
		t.Helper()
		l.await("api-1", "says: "+want, func(r *pinnacev1.InstanceReport) bool { return r.State == state && r.Message == want })
	}
	message(stateStarted, "not ready yet: /ready exited with status 3: no  [2Jdatabase")
	answer("/ready", guest.ExecResult{Code: 127, Error: "run /ready: no such file or directory"})
	message(stateStarted, "not ready yet: run /ready: no such file or directory")
	answer("/ready", guest.ExecResult{})
	l.awaitState("api-1", stateReady)
	answer("/ready", guest.ExecResult{Code: 137, TimedOut: true, Output: []byte("waiting"), Truncated: true})
	message(stateUnready, "health.ready failed: /ready did not end within 1s: waiting…")
	answer("/ready", guest.ExecResult{})
	l.awaitState("api-1", stateReady)

	answer("/live", guest.ExecResult{Code: 7, Output: []byte("password: " + strings.Repeat("x", 2*maxSaid))})
	end := l.awaitAttemptEnd("api-1", 1)
	answer("/live", guest.ExecResult{})
	if !strings.HasPrefix(end.Detail, "health.live failed: /live exited with status 7; ") || strings.Contains(end.Detail, "password") {
		t.Errorf("detail %q", end.Detail)
	}
	want := "health.live said: password: " + strings.Repeat("x", maxSaid-len("password: ")) + "…"
	if n := len(end.LogTail); n == 0 || end.LogTail[n-1] != want {
		t.Errorf("last lines %q", end.LogTail)
	}
	l.await("api-1", "is started again", func(r *pinnacev1.InstanceReport) bool { return r.Attempt == 2 && r.State == stateReady })
}
