package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
)

// exec asks for a command with credit for output.
func (l *lab) exec(instance string, start *pinnacev1.ExecStart, credit uint32) *fakeExec {
	x := &fakeExec{say: make(chan *pinnacev1.ServeExecResponse), hear: make(chan *pinnacev1.ServeExecRequest), gone: make(chan struct{})}
	l.server.change(func() {
		id := fmt.Sprint("exec-", len(l.server.tasks))
		l.server.execs[id] = x
		l.server.tasks = append(l.server.tasks, &pinnacev1.ExecTask{Id: id, Instance: instance, Start: start, OutputCredit: credit})
	})
	return x
}

// next is the next message of the agent.
func (x *fakeExec) next(t *testing.T) *pinnacev1.ServeExecRequest {
	t.Helper()
	select {
	case m, open := <-x.hear:
		if !open {
			t.Fatal("the agent has hung up")
		}
		return m
	case <-time.After(patience):
		t.Fatal("the agent says nothing")
	}
	return nil
}

func (x *fakeExec) tell(t *testing.T, m *pinnacev1.ExecRequest) {
	t.Helper()
	select {
	case x.say <- &pinnacev1.ServeExecResponse{Message: m}:
	case <-time.After(patience):
		t.Fatal("the agent does not listen")
	}
}

func (x *fakeExec) input(t *testing.T, in *pinnacev1.ExecInput) {
	t.Helper()
	x.tell(t, &pinnacev1.ExecRequest{Message: &pinnacev1.ExecRequest_Input{Input: in}})
}

// collect reads to the end of the command, giving credit for what it reads, and returns what came out of each stream.
// What comes of credit for input goes to room.
func (x *fakeExec) collect(t *testing.T, room *guest.Credit) (streams map[string]string, ended *pinnacev1.ExecEnded) {
	t.Helper()
	streams = map[string]string{}
	for {
		m := x.next(t)
		if m.Refusal != nil {
			t.Fatalf("refused: %v", m.Refusal)
		}
		if out := m.Message.GetOutput(); out != nil {
			streams[out.Stream] += string(out.Data)
			x.say <- &pinnacev1.ServeExecResponse{OutputCredit: uint32(len(out.Data) + guest.FrameCost)}
		}
		room.Give(int(m.Message.GetInputCredit()))
		if ended := m.Message.GetEnded(); ended != nil {
			return streams, ended
		}
	}
}

const window = 64 << 10

// TestExec talks to a command through everything between the server and the guest.
func TestExec(t *testing.T) {
	l := newLab(t)
	l.runs("api", playing(guesttest.Workload{Command: func(_ context.Context, c *guesttest.Command) int {
		fmt.Fprintf(c.Stdout, "%v %v %s %s %v %dx%d\n", c.Asked.Argv, c.Asked.Env, c.Asked.WorkDir, c.Asked.User, c.Asked.TTY, c.Asked.Rows, c.Asked.Cols)
		fmt.Fprintf(c.Stderr, "%v %s\n", <-c.Sizes, <-c.Signals)
		all, err := io.ReadAll(c.Stdin)
		fmt.Fprintf(c.Stdout, "%d %v\n", len(all), err)
		return 42
	}}))
	l.start()
	l.deploy("api-1", l.app("api"))
	x := l.exec("api-1", &pinnacev1.ExecStart{
		Argv: []string{"sh", "-c"}, Env: []string{"A=b"}, Workdir: "/srv", User: "web", Tty: true, Size: &pinnacev1.TerminalSize{Rows: 24, Columns: 80},
		Stdin: true, TimeoutMs: 60000,
	}, window)
	room := int(x.next(t).Message.GetInputCredit())
	if room != guest.InputWindow {
		t.Errorf("room for %d bytes", room)
	}
	if s := x.next(t).Message.GetStarted(); s.GetInstance() != "api-1" || s.GetAttempt() != 1 || s.GetHost() != "ship" || s.GetPid() != 90 {
		t.Errorf("started as %v", s)
	}
	x.tell(t, &pinnacev1.ExecRequest{Message: &pinnacev1.ExecRequest_Size{Size: &pinnacev1.TerminalSize{Rows: 50, Columns: 99999}}})
	x.tell(t, &pinnacev1.ExecRequest{Message: &pinnacev1.ExecRequest_Signal{Signal: "INT"}})
	total, credit := 3*guest.InputWindow, guest.NewCredit(room)
	go func() { // as fast as there is room
		for left := total; left > 0; left -= 1000 {
			data := make([]byte, min(left, 1000))
			if !credit.Take(t.Context().Done(), len(data)+guest.FrameCost) {
				return
			}
			x.input(t, &pinnacev1.ExecInput{Data: data})
		}
		x.input(t, &pinnacev1.ExecInput{Eof: true})
	}()
	streams, ended := x.collect(t, credit)
	if want := fmt.Sprintf("[sh -c] [A=b] /srv web true 24x80\n%d <nil>\n", total); streams["stdout"] != want {
		t.Errorf("got %q, want %q", streams["stdout"], want)
	}
	if streams["stderr"] != "{50 4096} INT\n" || ended.Code != 42 {
		t.Errorf("got %q, %v", streams["stderr"], ended)
	}
}

// TestExecNobodyReads: without credit nothing comes, and the command ends with who has asked for it.
func TestExecNobodyReads(t *testing.T) {
	l := newLab(t)
	ended := make(chan error, 1)
	l.runs("api", playing(guesttest.Workload{Command: func(ctx context.Context, c *guesttest.Command) int {
		line := bytes.Repeat([]byte("y\n"), 4<<10)
		for {
			if _, err := c.Stdout.Write(line); err != nil {
				<-ctx.Done()
				ended <- context.Cause(ctx)
				return 1
			}
		}
	}}))
	l.start()
	l.deploy("api-1", l.app("api"))
	x := l.exec("api-1", &pinnacev1.ExecStart{Argv: []string{"yes"}}, window)
	got := 0
	for got+8<<10+guest.FrameCost <= window {
		if out := x.next(t).Message.GetOutput(); out != nil {
			got += len(out.Data) + guest.FrameCost
		}
	}
	select {
	case m := <-x.hear:
		t.Errorf("without credit: %v", m)
	case <-time.After(50 * time.Millisecond): // it would have come at once
	}
	close(x.gone)
	select {
	case err := <-ended:
		if !strings.Contains(err.Error(), "nobody waits") {
			t.Errorf("ended by %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the command goes on")
	}
	l.poll("its place is free", func() bool { return len(l.agent.execSlots) == 0 })
}

// TestExecRefused has commands that cannot be run, and why.
func TestExecRefused(t *testing.T) {
	l := newLab(t)
	l.runs("slow", l.during("never", playing(guesttest.Workload{})))
	l.start()
	l.deploy("old-1", l.app("old"))
	l.assign("dev", "slow-1", l.app("slow"))
	l.await("slow-1", "starts", func(r *pinnacev1.InstanceReport) bool { return r.State == stateStarting })
	refused := func(instance, reason, part string) {
		t.Helper()
		x := l.exec(instance, &pinnacev1.ExecStart{Argv: []string{"x"}}, window)
		r := x.next(t).Refusal
		if r.GetReason() != reason || !strings.Contains(r.GetMessage(), part) {
			t.Errorf("%s: got %v, want %s: %s", instance, r, reason, part)
		}
	}
	refused("old-1", "unable", "earlier version")
	refused("slow-1", "not-running", "it is starting")
	refused("nobody-1", "not-running", "not on host ship")
	for range maxExecs {
		l.agent.execSlots <- struct{}{}
	}
	refused("old-1", "busy", "64 commands")
	for range maxExecs {
		<-l.agent.execSlots
	}
	l.stop("slow-1")
	l.awaitEnd("slow-1")
}

// TestExecInputWithoutRoom: who sends more than there is room for has the command ended.
func TestExecInputWithoutRoom(t *testing.T) {
	l := newLab(t)
	ended := make(chan struct{})
	l.runs("api", playing(guesttest.Workload{Command: func(ctx context.Context, _ *guesttest.Command) int {
		<-ctx.Done()
		close(ended)
		return 1
	}}))
	l.start()
	l.deploy("api-1", l.app("api"))
	x := l.exec("api-1", &pinnacev1.ExecStart{Argv: []string{"x"}, Stdin: true}, window)
	go func() {
		for m := range x.hear {
			_ = m
		}
	}()
	data := make([]byte, guest.MaxCommandData)
	for n := 0; ; n++ {
		select {
		case x.say <- &pinnacev1.ServeExecResponse{Message: &pinnacev1.ExecRequest{Message: &pinnacev1.ExecRequest_Input{Input: &pinnacev1.ExecInput{Data: data}}}}:
			continue
		case <-ended:
		case <-time.After(patience):
			t.Fatalf("the command takes %d messages that it does not read", n)
		}
		return
	}
}
