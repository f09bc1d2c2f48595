//go:build linux

package pid1

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// logPort is the host's end of the log channel: it collects what is sent and says what is acknowledged when told to.
type logPort struct {
	mu    sync.Mutex
	lines []guest.Line
	acks  *io.PipeReader
	host  *io.PipeWriter
}

func newLogPort() *logPort {
	r, w := io.Pipe()
	return &logPort{acks: r, host: w}
}

func (p *logPort) Read(b []byte) (int, error) { return p.acks.Read(b) }

func (p *logPort) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := guest.NewReader(bytes.NewReader(b), guest.MaxGuestFrame)
	for {
		t, body, err := r.Next()
		if err != nil {
			return len(b), nil
		}
		m, err := guest.Decode(t, body)
		if err != nil {
			return 0, err
		}
		p.lines = append(p.lines, m.(guest.Line))
	}
}

func (p *logPort) ack(t *testing.T, seq uint64) {
	t.Helper()
	frame, err := guest.Encode(nil, guest.Ack{Seq: seq})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.host.Write(frame); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func (p *logPort) got() []guest.Line {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lines
}

// startOutput runs an output in a synctest bubble; the returned function ends its goroutines.
func startOutput(p *logPort) (*output, func()) {
	o := newOutput(p)
	safely("send", o.send)
	safely("acks", o.readAcks)
	return o, func() {
		close(o.fresh)
		p.host.Close()
	}
}

// TestOutputFullRing is the promise about logs: a writer waits ten seconds for the host, then lines are dropped, and a
// marker counts them.
func TestOutputFullRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port := newLogPort()
		o, end := startOutput(port)
		defer end()
		line := bytes.Repeat([]byte("x"), guest.MaxLine)
		fit := ringBytes / (guest.MaxLine + lineCost)
		for range fit {
			o.put(guest.StreamStdout, line, false)
		}
		synctest.Wait()
		if n := len(port.got()); n != fit {
			t.Fatalf("%d lines sent, %d fit", n, fit)
		}

		began := time.Now()
		o.put(guest.StreamStdout, line, false)
		if waited := time.Since(began); waited != blockFor {
			t.Errorf("the writer waited %v", waited)
		}
		began = time.Now()
		o.put(guest.StreamStdout, line, false)
		o.put(guest.StreamStderr, line, false)
		if waited := time.Since(began); waited != 0 {
			t.Errorf("a later writer waited %v", waited)
		}

		port.ack(t, 2)
		o.put(guest.StreamStdout, []byte("after"), false)
		synctest.Wait()
		dropped := map[string]uint64{}
		last := guest.Line{}
		for i, l := range port.got() {
			if l.Seq != uint64(i+1) {
				t.Fatalf("line %d has number %d", i+1, l.Seq)
			}
			dropped[l.Stream] += l.Dropped
			last = l
		}
		if dropped[guest.StreamStdout] != 2 || dropped[guest.StreamStderr] != 1 {
			t.Errorf("markers count %v", dropped)
		}
		if string(last.Data) != "after" || last.Dropped != 0 {
			t.Errorf("the last line is %+v", last)
		}
		if n := o.finish(time.Second); n != last.Seq {
			t.Errorf("finish says %d lines, there are %d", n, last.Seq)
		}
	})
}

func TestOutputWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port := newLogPort()
		o, end := startOutput(port)
		defer end()
		line := bytes.Repeat([]byte("x"), guest.MaxLine)
		for range ringBytes / (guest.MaxLine + lineCost) {
			o.put(guest.StreamStdout, line, false)
		}
		synctest.Wait()
		put := make(chan time.Duration)
		go func() {
			began := time.Now()
			o.put(guest.StreamStdout, line, false)
			put <- time.Since(began)
		}()
		time.Sleep(3 * time.Second)
		port.ack(t, 1)
		if waited := <-put; waited != 3*time.Second {
			t.Errorf("the writer waited %v", waited)
		}
		synctest.Wait()
		for _, l := range port.got() {
			if l.Dropped > 0 {
				t.Errorf("a marker: %+v", l)
			}
		}
	})
}

func TestOutputDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port := newLogPort()
		o, end := startOutput(port)
		defer end()
		o.drain(time.Minute) // nothing to wait for
		o.put(guest.StreamStdout, []byte("a"), false)
		synctest.Wait()
		began := time.Now()
		o.drain(2 * time.Second)
		if waited := time.Since(began); waited != 2*time.Second {
			t.Errorf("a host that is silent: %v", waited)
		}
		port.ack(t, 99) // more than there is
		o.drain(time.Minute)
		if waited := time.Since(began); waited != 2*time.Second {
			t.Errorf("a host that has all: %v", waited)
		}
	})
}

// slowReader gives its pieces one by one; an empty one is a pause that outlasts the deadline.
type slowReader struct {
	pieces   []string
	deadline time.Time
}

func (r *slowReader) SetReadDeadline(t time.Time) error { r.deadline = t; return nil }

func (r *slowReader) Read(b []byte) (int, error) {
	if len(r.pieces) == 0 {
		return 0, io.EOF
	}
	if r.pieces[0] == "" {
		r.pieces = r.pieces[1:]
		if r.deadline.IsZero() {
			return 0, nil
		}
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(b, r.pieces[0])
	if r.pieces[0] = r.pieces[0][n:]; r.pieces[0] == "" {
		r.pieces = r.pieces[1:]
	}
	return n, nil
}

func TestPump(t *testing.T) {
	long := strings.Repeat("l", guest.MaxLine)
	for _, tc := range []struct {
		name   string
		pieces []string
		want   []string // "…" at the end of a partial line
	}{
		{"lines", []string{"a\nb\n\nc\n"}, []string{"a", "b", "", "c"}},
		{"in pieces", []string{"a", "b", "c\nd", "\n"}, []string{"abc", "d"}},
		{"no newline at the end", []string{"a\nb"}, []string{"a", "b…"}},
		{"a prompt", []string{"login: ", "", "root\n"}, []string{"login: …", "root"}},
		{"a pause between lines", []string{"a\n", "", "b\n"}, []string{"a", "b"}},
		{"a long line", []string{long + "rest\n"}, []string{long + "…", "rest"}},
		{"exactly full", []string{long, "\n"}, []string{long + "…", ""}},
		{"full with newline", []string{long[1:] + "\n" + "x\n"}, []string{long[1:], "x"}},
		{"bytes", []string{"\xff\x00\x1b[1m\n"}, []string{"\xff\x00\x1b[1m"}},
		{"nothing", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := newOutput(nil)
			o.pump(guest.StreamStdout, &slowReader{pieces: tc.pieces})
			var got []string
			for _, l := range o.lines {
				text := string(l.Data)
				if l.Partial {
					text += "…"
				}
				got = append(got, text)
			}
			if strings.Join(got, "|") != strings.Join(tc.want, "|") || len(got) != len(tc.want) {
				t.Errorf("got %.80q, want %.80q", got, tc.want)
			}
		})
	}
}
