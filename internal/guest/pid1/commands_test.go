//go:build linux

package pid1

import (
	"bytes"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// fakeProcess is a command's process that a test plays.
type fakeProcess struct {
	status chan syscall.WaitStatus
	stdin  *io.PipeReader
	stdout *io.PipeWriter

	mu    sync.Mutex
	news  []string // guarded by mu
	ended bool
}

func (p *fakeProcess) note(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.news = append(p.news, what)
}

// exit ends the process, as the kernel does: once.
func (p *fakeProcess) exit(status syscall.WaitStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.ended = true
	p.status <- status
	p.stdout.Close()
	p.stdin.Close()
}

type pipeWithDeadline struct{ *io.PipeReader }

func (pipeWithDeadline) SetReadDeadline(time.Time) error { return nil }

// fakeCommands are commands whose processes come out of a channel.
func fakeCommands(refuse error) (*commands, <-chan *fakeProcess) {
	c, all := newCommands(), make(chan *fakeProcess, 2*guest.MaxCommands)
	c.hear()
	c.serve(func(guest.RunCommand) (*launched, error) {
		if refuse != nil {
			return nil, refuse
		}
		p := &fakeProcess{status: make(chan syscall.WaitStatus, 1)}
		stdin, feed := io.Pipe()
		out, stdout := io.Pipe()
		p.stdin, p.stdout = stdin, stdout
		all <- p
		return &launched{
			child: &child{pid: 9, status: p.status}, stdin: feed, outputs: map[string]deadlineReader{guest.StreamStdout: pipeWithDeadline{out}},
			resize: func(rows, cols uint16) { p.note("resize") },
			signal: func(sig syscall.Signal) { p.note(signalName(sig)) },
			kill:   func() { p.exit(syscall.WaitStatus(unix.SIGKILL)) },
			close:  func() { p.note("close"); feed.Close() },
		}, nil
	})
	return c, all
}

func next(t *testing.T, c *commands) guest.Message {
	t.Helper()
	select {
	case m := <-c.frames:
		return m
	case <-time.After(time.Minute): // of a bubble
		t.Fatal("no frame")
		return nil
	}
}

// TestCommandDialogue: what comes before the process runs reaches it, input flows only as fast as it is read, output as
// fast as there is credit, and the end comes last.
func TestCommandDialogue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(2 * guest.HostInterval) // until nobody watches the host any more
		c, processes := fakeCommands(nil)
		data := bytes.Repeat([]byte("x"), 1000)
		c.handle(guest.RunCommand{ID: 1, Argv: []string{"x"}, Stdin: true, Window: 1000 + guest.FrameCost})
		c.handle(guest.CommandSignal{ID: 1, Signal: "USR1"})
		c.handle(guest.CommandInput{ID: 1, Data: data})
		p := <-processes
		if m := next(t, c); m != (guest.CommandStarted{ID: 1, PID: 9}) {
			t.Errorf("got %+v", m)
		}
		got := make([]byte, len(data))
		if _, err := io.ReadFull(p.stdin, got); err != nil {
			t.Error(err)
		}
		if m := next(t, c); m != (guest.InputCredit{ID: 1, Bytes: len(data) + guest.FrameCost}) {
			t.Errorf("got %+v", m)
		}
		c.handle(guest.CommandInput{ID: 1, EOF: true})
		if _, err := p.stdin.Read(got); !errors.Is(err, io.EOF) {
			t.Errorf("after the end of the input: %v", err)
		}
		go func() {
			p.stdout.Write(data)
			p.stdout.Write(data)
			p.exit(7 << 8)
		}()
		if m, ok := next(t, c).(guest.CommandOutput); !ok || !bytes.Equal(m.Data, data) {
			t.Errorf("got %+v", m)
		}
		synctest.Wait()
		select {
		case m := <-c.frames:
			t.Errorf("without credit: %+v", m)
		default:
		}
		c.handle(guest.CommandCredit{ID: 1, Bytes: 1000 + guest.FrameCost})
		if m, ok := next(t, c).(guest.CommandOutput); !ok || !bytes.Equal(m.Data, data) {
			t.Errorf("got %+v", m)
		}
		if m := next(t, c); m != (guest.CommandEnded{ID: 1, Code: 7}) {
			t.Errorf("got %+v", m)
		}
		c.finish(time.Second)
		if want := []string{"resize", "SIGUSR1", "close"}; !slices.Equal(p.news, want) {
			t.Errorf("got %v, want %v", p.news, want)
		}
		c.handle(guest.CommandInput{ID: 1, Data: data}) // late
	})
}

// TestCommandEnds: a command that nobody waits for gets a signal, then it is killed, and its output is nobody's; so is
// one whose host sends more than it may.
func TestCommandEnds(t *testing.T) {
	for name, end := range map[string]func(*commands){
		"by the host":        func(c *commands) { c.handle(guest.EndCommand{ID: 1}) },
		"by another session": func(c *commands) { c.reset() },
		"by too much input": func(c *commands) {
			for range guest.InputWindow/guest.MaxCommandData + 1 {
				c.handle(guest.CommandInput{ID: 1, Data: make([]byte, guest.MaxCommandData)})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer time.Sleep(2 * guest.HostInterval) // until nobody watches the host any more
				c, processes := fakeCommands(nil)
				c.handle(guest.RunCommand{ID: 1, Argv: []string{"x"}, Stdin: true, Window: 300})
				p := <-processes
				next(t, c)
				synctest.Wait()
				go p.stdout.Write(make([]byte, 100<<10)) // more than there is credit for
				began := time.Now()
				end(c)
				end(c)
				for m := next(t, c); m != (guest.CommandEnded{ID: 1, Code: 137, Signal: "SIGKILL"}); m = next(t, c) {
					if _, ok := m.(guest.CommandOutput); ok {
						t.Errorf("got %+v", m)
					}
				}
				if took := time.Since(began); took != killAfter {
					t.Errorf("it took %v", took)
				}
				synctest.Wait()
				if want := []string{"resize", "SIGHUP", "close"}; !slices.Equal(p.news, want) {
					t.Errorf("got %v, want %v", p.news, want)
				}
			})
		})
	}
}

// TestCommandsHostSilent: a command lives while its host is heard of, and not much longer.
func TestCommandsHostSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(2 * guest.HostInterval) // until nobody watches the host any more
		c, _ := fakeCommands(nil)
		c.handle(guest.RunCommand{ID: 1})
		next(t, c)
		for range 20 {
			time.Sleep(guest.HostInterval)
			c.hear()
		}
		began := time.Now()
		ended := <-c.frames
		if m, ok := ended.(guest.CommandEnded); !ok || m.Code != 137 {
			t.Errorf("got %+v", ended)
		}
		if took := time.Since(began); took < guest.HostTimeout || took > guest.HostTimeout+2*guest.HostInterval {
			t.Errorf("it took %v", took)
		}
	})
}

func TestCommandsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(2 * guest.HostInterval) // until nobody watches the host any more
		c, processes := fakeCommands(nil)
		for id := range uint64(guest.MaxCommands) {
			c.handle(guest.RunCommand{ID: id + 1, Window: 1})
			next(t, c)
		}
		c.handle(guest.RunCommand{ID: 77})
		if m, ok := next(t, c).(guest.CommandEnded); !ok || m.ID != 77 || m.Code != exitNotRun || m.Error != "8 commands are running already" {
			t.Errorf("got %+v", m)
		}
		for range guest.MaxCommands {
			(<-processes).exit(0)
			next(t, c)
		}
		c.finish(time.Second)
		c.handle(guest.RunCommand{ID: 78})
		if m, ok := next(t, c).(guest.CommandEnded); !ok || m.ID != 78 || m.Error != "the workload does not run" {
			t.Errorf("got %+v", m)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(2 * guest.HostInterval) // until nobody watches the host any more
		c, _ := fakeCommands(&execError{exitNotFound, "not there", unix.ENOENT})
		c.handle(guest.RunCommand{ID: 1})
		if m := next(t, c); m != (guest.CommandEnded{ID: 1, Code: exitNotFound, Error: "not there"}) {
			t.Errorf("got %+v", m)
		}
	})
}

func TestWithEnv(t *testing.T) {
	got := withEnv([]string{"A=1", "AB=2", "B=3"}, "A=4")
	if want := []string{"AB=2", "B=3", "A=4"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestTerminal makes a terminal where there is one to be had.
func TestTerminal(t *testing.T) {
	master, slave, err := openTerminal(user{uid: uint32(os.Getuid())})
	if err != nil {
		t.Skip("needs terminals: ", err)
	}
	defer master.Close()
	if _, err := slave.WriteString("x\n"); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	got, err := io.ReadAll(master)
	if string(got) != "x\r\n" || !errors.Is(err, unix.EIO) {
		t.Errorf("got %q, %v", got, err)
	}
}

// FuzzCommands has a host that says anything: PID 1 must neither panic nor keep more than it gave credit for.
func FuzzCommands(f *testing.F) {
	seed := func(all ...guest.Message) {
		var b []byte
		for _, m := range all {
			b, _ = guest.Encode(b, m)
		}
		f.Add(b)
	}
	seed(guest.RunCommand{ID: 1, Argv: []string{"x"}, Window: 100}, guest.CommandInput{ID: 1, Data: []byte("x")}, guest.CommandInput{ID: 1, EOF: true},
		guest.CommandResize{ID: 1, Rows: 1, Cols: 1}, guest.CommandSignal{ID: 1, Signal: "RTMIN+1"}, guest.CommandCredit{ID: 1, Bytes: 10}, guest.EndCommand{ID: 1})
	seed(guest.Resume{Token: "t", After: 1}, guest.RunCommand{ID: 1, Argv: []string{"x"}}, guest.RunCommand{ID: 1}, guest.Resume{})
	f.Fuzz(func(t *testing.T, stream []byte) {
		c, processes := fakeCommands(nil)
		c.watched = true // by nobody
		taken := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(taken)
			for {
				select {
				case <-c.frames:
				case <-done:
					return
				}
			}
		}()
		r := guest.NewRestartableReader(bytes.NewReader(stream), guest.MaxHostFrame)
		for range 2 * guest.MaxCommands { // what processes has room for
			kind, body, err := r.Next()
			if err != nil {
				break
			}
			m, err := guest.Decode(kind, body)
			if err != nil {
				continue
			}
			if _, ok := m.(guest.Resume); ok {
				c.reset()
			}
			c.handle(m)
			c.mu.Lock()
			for _, d := range c.all {
				d.mu.Lock()
				held := 0
				for _, in := range d.input {
					held += len(in) + guest.FrameCost
				}
				if held > guest.InputWindow {
					t.Errorf("%d bytes of input are held", held)
				}
				d.mu.Unlock()
			}
			if len(c.all) > guest.MaxCommands {
				t.Errorf("%d commands", len(c.all))
			}
			c.mu.Unlock()
		}
		for {
			select {
			case p := <-processes:
				p.exit(0)
				continue
			default:
			}
			c.mu.Lock()
			left := len(c.all)
			c.mu.Unlock()
			if left == 0 {
				break
			}
			runtime.Gosched()
		}
		close(done)
		<-taken
	})
}
