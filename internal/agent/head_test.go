package agent

import (
	"os"
	"testing"
)

// TestServerForgot: a server whose log has lost events, or has others in their place, is not obeyed, and what runs
// goes on; it is obeyed again when its log is the one that was seen.
func TestServerForgot(t *testing.T) {
	l := newLab(t)
	l.server.change(func() { l.server.events = []string{"a", "b", "c"} })
	l.start()
	l.deploy("api-1", l.app("api"))
	for _, wrong := range [][]string{{"a", "b"}, {"a", "b", "x"}, {"a", "b", "x", "y"}} {
		l.server.leave()
		l.eventually("the stream has ended", func() bool { return l.server.streams == 0 })
		l.server.change(func() { l.server.events, l.server.joins = wrong, 0 })
		l.server.comeBack()
		l.eventually("the agent tries and tries", func() bool { return l.server.joins >= 3 })
		l.server.change(func() {
			if l.server.streams != 0 {
				t.Errorf("%q: the agent follows the server", wrong)
			}
		})
	}
	if r := l.awaitState("api-1", stateReady); r.Attempt != 1 {
		t.Errorf("got %v", r)
	}
	l.server.change(func() { l.server.events = []string{"a", "b", "c", "d"} })
	l.stop("api-1")
	l.awaitEnd("api-1")

	m, err := openHeadMemory(headPath(l.agent.Dir))
	if err != nil || m.seq() != 4 {
		t.Errorf("on the disk is event %d, %v, want 4", m.seq(), err)
	}
	if err := os.WriteFile(headPath(l.agent.Dir), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openHeadMemory(headPath(l.agent.Dir)); err == nil {
		t.Error("read a damaged file")
	}
}
