package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// ask makes a request for logs, named like the instance and what is asked.
func (l *lab) ask(instance string, follow bool, tail uint32) string {
	id := fmt.Sprintf("%s/%v/%d/%d", instance, follow, tail, time.Now().UnixNano())
	l.server.change(func() {
		l.server.asks = append(l.server.asks, &pinnacev1.LogRequest{Id: id, Instance: instance, Follow: follow, Tail: tail})
	})
	return id
}

// lines are the texts that a request has brought, once there are n of them or, with n < 0, when it has ended.
func (l *lab) lines(request string, n int) []*pinnacev1.StreamLogsResponse {
	l.t.Helper()
	var got []*pinnacev1.StreamLogsResponse
	l.eventually("the lines of "+request, func() bool {
		got = l.server.lines[request]
		return n < 0 && l.server.finished[request] || n >= 0 && len(got) >= n
	})
	return got
}

// talks is a workload that writes what it is told to.
func talks(say <-chan string) vmtest.Guest {
	return playing(guesttest.Workload{Run: func(ctx context.Context, p *guesttest.Process) int {
		for {
			select {
			case text, ok := <-say:
				if !ok {
					return 3
				}
				if err := p.Log(guest.StreamStdout, text); err != nil {
					return 1
				}
			case <-ctx.Done():
				return 0
			}
		}
	}})
}

func TestSendLogs(t *testing.T) {
	l := newLab(t)
	say := make(chan string)
	l.runs("api", talks(say))
	l.start()
	l.deploy("api-1", l.app("api", `restart = "never"`))
	early := l.ask("api-1", true, 0) // before there is anything
	l.eventually("the follow has begun", func() bool { return l.server.batches[early] > 0 })
	for n := range 1000 {
		say <- fmt.Sprint("line ", n)
	}
	for n, got := range l.lines(early, 1000) {
		if string(got.Line) != fmt.Sprint("line ", n) || got.Seq != uint64(n+1) || got.Attempt != 1 || got.Instance != "api-1" || got.Stream != "stdout" {
			t.Fatalf("line %d: got %v", n, got)
		}
	}
	l.server.mu.Lock()
	if n := l.server.batches[early]; n > 500 {
		t.Errorf("%d messages for 1000 lines", n)
	}
	l.server.mu.Unlock()
	if got := l.lines(l.ask("api-1", false, 2), -1); len(got) != 2 || string(got[1].Line) != "line 999" {
		t.Errorf("tail: got %v", got)
	}
	if got := l.lines(l.ask("other-1", true, 0), -1); len(got) != 0 {
		t.Errorf("of an instance that is not here: got %v", got)
	}
	// A follow ends with its instance, and the last lines are those before the end.
	say <- "farewell"
	close(say)
	if got := l.lines(early, -1); string(got[len(got)-1].Line) != "farewell" {
		t.Errorf("last line: got %v", got[len(got)-1])
	}
	if end := l.awaitEnd("api-1").End; len(end.LogTail) != tailLines || end.LogTail[tailLines-1] != "farewell" {
		t.Errorf("tail in the cause: got %q", end.LogTail)
	}
	// What has ended can still be read.
	if got := l.lines(l.ask("api-1", true, 1), -1); len(got) != 1 || string(got[0].Line) != "farewell" {
		t.Errorf("after the end: got %v", got)
	}
}

// TestSendLogsAcrossAttempts follows an instance, not one run of it.
func TestSendLogsAcrossAttempts(t *testing.T) {
	l := newLab(t)
	hello := playing(guesttest.Workload{Run: func(_ context.Context, p *guesttest.Process) int {
		_ = p.Log(guest.StreamStderr, "hello")
		return 1
	}})
	l.runs("api", hello)
	l.start()
	l.assign("dev", "api-1", l.app("api"))
	got := l.lines(l.ask("api-1", true, 0), 3)
	for n := range 3 {
		if got[n].Attempt != uint32(n+1) || got[n].Seq != 1 {
			t.Errorf("line %d: got %v", n, got[n])
		}
	}
}

// TestLogsSince leaves out what was written before.
func TestLogsSince(t *testing.T) {
	l := newLab(t).start()
	l.agent.logs.begin("api-1")
	defer l.agent.logs.end("api-1")
	at := time.Unix(1_000_000, 0)
	for n := range 4 {
		line := guest.Line{Seq: uint64(n + 1), Time: at.Add(time.Duration(n) * time.Minute).UnixNano(), Stream: guest.StreamStdout, Data: []byte{byte('a' + n)}}
		if _, err := l.agent.logs.append("api-1", 1, line); err != nil {
			t.Fatal(err)
		}
	}
	read := func(tail uint32, since time.Duration) (got string) {
		t.Helper()
		req := &pinnacev1.LogRequest{Instance: "api-1", Tail: tail, Since: timestamppb.New(at.Add(since))}
		err := l.agent.copyLogs(t.Context(), req, func(lines []*pinnacev1.StreamLogsResponse) error {
			for _, line := range lines {
				got += string(line.Line)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, tc := range []struct {
		tail  uint32
		since time.Duration
		want  string
	}{
		{0, 0, "abcd"}, {0, time.Minute, "bcd"}, {0, 90 * time.Second, "cd"}, {1, time.Minute, "d"}, {3, 2 * time.Minute, "cd"}, {0, time.Hour, ""},
	} {
		if got := read(tc.tail, tc.since); got != tc.want {
			t.Errorf("the last %d since %s: got %q, want %q", tc.tail, tc.since, got, tc.want)
		}
	}
}

// TestDroppedLinesAreCounted shows the guest's markers as lines of the platform.
func TestDroppedLinesAreCounted(t *testing.T) {
	got := wireLine("api-1", logRecord{Attempt: 2, Line: guest.Line{Seq: 9, Stream: "stdout", Dropped: 12}})
	if got.Stream != "platform" || !strings.HasPrefix(string(got.Line), "12 lines were lost here") || got.Seq != 9 || got.Attempt != 2 {
		t.Errorf("got %v", got)
	}
}

// TestLogRequestsAreBounded: 64 follow an instance that is silent, the next one is told so, and those that
// nobody reads any more make room.
func TestLogRequestsAreBounded(t *testing.T) {
	l := newLab(t).start()
	l.deploy("api-1", l.app("api"))
	var follows []string
	for range maxLogRequests {
		id := l.ask("api-1", true, 0)
		follows = append(follows, id)
	}
	l.eventually("all follow", func() bool {
		for _, id := range follows {
			if l.server.batches[id] == 0 {
				return false
			}
		}
		return true
	})
	got := l.lines(l.ask("api-1", true, 0), -1)
	want := "host ship answers 64 requests for logs already; end one of them and try again"
	if len(got) != 1 || string(got[0].Line) != want || got[0].Stream != "platform" {
		t.Errorf("got %v, want %q", got, want)
	}
	l.server.change(func() {
		for _, id := range follows {
			l.server.unread[id] = true
		}
	})
	l.poll("the follows have ended", func() bool { return len(l.agent.logSlots) == 0 })
	if got := l.lines(l.ask("api-1", false, 0), -1); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

// TestBigLinesAreSentInSmallBatches keeps messages within what a server takes.
func TestBigLinesAreSentInSmallBatches(t *testing.T) {
	lines := make(chan *pinnacev1.StreamLogsResponse, 200)
	for range cap(lines) {
		lines <- &pinnacev1.StreamLogsResponse{Line: make([]byte, guest.MaxLine)}
	}
	close(lines)
	total := 0
	err := sendBatches(lines, time.Hour, func(batch []*pinnacev1.StreamLogsResponse) error {
		size := 0
		for _, l := range batch {
			size += len(l.Line)
		}
		if size > batchBytes+guest.MaxLine {
			t.Errorf("a batch of %d bytes", size)
		}
		total += len(batch)
		return nil
	})
	if err != nil || total != cap(lines) {
		t.Errorf("got %d lines, %v", total, err)
	}
}

// TestLogsWithoutDisk: a host that cannot keep lines still runs its workloads, and keeps the lines later.
func TestLogsWithoutDisk(t *testing.T) {
	l := newLab(t)
	say := make(chan string)
	l.runs("api", talks(say))
	l.start()
	l.deploy("api-1", l.app("api"))
	logs := filepath.Join(l.dir, "data", "logs")
	if err := os.Remove(logs); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, logs, "in the way of a directory")
	say <- "one"
	say <- "two"
	l.server.change(func() { l.server.last = nil })
	l.eventually("the instance goes on", func() bool {
		return l.server.last != nil && l.server.last.Instances[0].State == stateReady && l.server.last.Instances[0].Attempt == 1
	})
	if err := os.Remove(logs); err != nil {
		t.Fatal(err)
	}
	l.poll("the lines are kept", func() bool {
		got := 0
		_ = l.agent.logs.read(t.Context(), "api-1", 0, false, func(logRecord) error { got++; return nil })
		return got == 2
	})
}
