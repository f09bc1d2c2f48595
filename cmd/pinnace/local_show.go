package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// localEvent is a line of local --json. Fields that an event has no use for are absent.
type localEvent struct {
	// Event is resolved, note, pulled, port, stage, state, log or end.
	Event    string    `json:"event"`
	At       time.Time `json:"at"`
	Instance string    `json:"instance,omitempty"`
	Attempt  uint32    `json:"attempt,omitempty"`
	Message  string    `json:"message,omitempty"`

	Image      string `json:"image,omitempty"`      // resolved: what the reference stands for
	Repository string `json:"repository,omitempty"` // resolved
	Manifest   string `json:"manifest,omitempty"`   // resolved: its hash
	Release    string `json:"release,omitempty"`    // resolved: its id

	FetchedBytes int64 `json:"fetched_bytes,omitempty"` // pulled

	Port *localPort `json:"port,omitempty"` // port

	Stage   string  `json:"stage,omitempty"`   // stage
	Seconds float64 `json:"seconds,omitempty"` // stage: what it took
	State   string  `json:"state,omitempty"`   // state

	Stream string `json:"stream,omitempty"` // log: stdout, stderr or platform
	Seq    uint64 `json:"seq,omitempty"`    // log
	Line   string `json:"line,omitempty"`   // log

	End *localEnd `json:"end,omitempty"` // end of an attempt
}

// localEnd is how an attempt ended.
type localEnd struct {
	Kind    string `json:"kind"`
	Code    int32  `json:"code"`
	Signal  string `json:"signal,omitempty"`
	Stage   string `json:"stage,omitempty"`
	Detail  string `json:"detail,omitempty"`
	Planned bool   `json:"planned"`
	Final   bool   `json:"final"`
}

// localView shows what becomes of the instance. Its methods may be called concurrently.
type localView struct {
	c     *cli
	times bool
	began time.Time

	rawOut, rawErr bool // it is no terminal: bytes pass as they are

	over     chan struct{} // closed when the instance has ended for good
	hopeless chan struct{} // closed when it should not be started again
	written  chan struct{} // closed when all of its output was written

	mu       sync.Mutex // guards what follows
	instance string     // whose reports count
	ports    []localPort
	once     bool // one attempt is enough
	attempt  uint32
	stages   int
	state    string
	message  string
	told     time.Time // when a message that changes often was last shown
	ready    bool      // it was, once
	ended    uint32    // the attempt whose end was shown last
	last     *pinnacev1.Cause
}

func (c *cli) newLocalView(times bool) *localView {
	return &localView{
		c: c, times: times, rawOut: !isTerminal(c.stdout), rawErr: !isTerminal(c.stderr), began: time.Now(),
		over: make(chan struct{}), hopeless: make(chan struct{}), written: make(chan struct{}),
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// event writes a line of JSON.
func (v *localView) event(e localEvent) {
	e.At = time.Now().UTC()
	_ = v.c.printJSON(e) // who does not read it any more is noticed by the lines
}

// note says something that is worth knowing.
func (v *localView) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if v.c.json {
		v.event(localEvent{Event: "note", Message: text})
		return
	}
	v.c.say("note: %s", text)
}

// say writes a line with the time since the start.
func (v *localView) say(format string, args ...any) {
	if !v.c.json && !v.c.quiet {
		fmt.Fprintf(v.c.stderr, "%7.2fs  %s\n", time.Since(v.began).Seconds(), fmt.Sprintf(format, args...))
	}
}

// follow begins to show an instance.
func (v *localView) follow(instance string, ports []localPort, once bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.instance, v.ports, v.once = instance, ports, once
	for _, p := range ports {
		if v.c.json {
			v.event(localEvent{Event: "port", Port: &p, Message: p.note})
		} else if p.note != "" {
			v.c.say("note: %s, so %s is at %s", p.note, p.Name, p.Address)
		}
	}
}

// report shows what is new in a report.
func (v *localView) report(r *pinnacev1.InstanceReport) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if r.Instance != v.instance {
		return
	}
	if r.Attempt != v.attempt {
		v.attempt, v.stages, v.state, v.message = r.Attempt, 0, "", ""
		if r.Attempt > 1 {
			v.say("attempt %d", r.Attempt)
		}
	}
	v.showStages(r)
	if r.End != nil && v.ended != r.Attempt {
		v.ended = r.Attempt
		if !isClosed(v.hopeless) {
			v.last = r.End
		}
		if !v.c.json {
			time.Sleep(outputLag) // the lines before it are on their way
		}
		v.showEnd(r)
	}
	v.showState(r)
	if r.Final {
		if !isClosed(v.over) {
			close(v.over)
		}
		return
	}
	if r.End != nil && !isClosed(v.hopeless) && (v.once || r.End.Kind == "start_failed" && !v.ready) {
		// A deployment would fail with this, too, and what it was is lost in a row of attempts.
		close(v.hopeless)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// outputLag is how much later than a report lines may come that were written before it: an agent sends them in batches.
const outputLag = 250 * time.Millisecond

func (v *localView) showStages(r *pinnacev1.InstanceReport) {
	for _, s := range r.Stages[min(v.stages, len(r.Stages)):] {
		v.stages++
		seconds := float64(s.DurationMs) / 1000
		if v.c.json {
			v.event(localEvent{Event: "stage", Instance: r.Instance, Attempt: r.Attempt, Stage: s.Name, Seconds: seconds, Message: s.Detail})
			continue
		}
		line := fmt.Sprintf("%-8s %6.2fs  %s", printable(s.Name), seconds, printable(s.Detail))
		v.say("%s", strings.TrimRight(line, " "))
	}
}

// sayRepeatedly is how often a message is shown that goes on changing.
const sayRepeatedly = 5 * time.Second

func (v *localView) showState(r *pinnacev1.InstanceReport) {
	same, before := r.State == v.state, v.state
	if same && r.Message == v.message {
		return
	}
	v.message, v.state = r.Message, r.State
	if v.c.json {
		if !same || time.Since(v.told) >= sayRepeatedly {
			v.told = time.Now()
			v.event(localEvent{Event: "state", Instance: r.Instance, Attempt: r.Attempt, State: r.State, Message: r.Message})
		}
		v.ready = v.ready || r.State == "ready"
		return
	}
	switch r.State {
	case "ready":
		v.ready = true
		if before == "unready" {
			v.say("ready again")
			return
		}
		for _, p := range v.ports {
			v.say("%s answers at %s", p.Name, p.URL)
		}
	case "backoff", "unready", "stopping":
		v.sayOften(same, r)
	case "started":
		if !same {
			v.told = time.Now() // that it is not ready at once is no news
		} else if strings.HasPrefix(r.Message, "not ready") {
			v.sayOften(true, r)
		}
	case "pulling":
		if strings.HasPrefix(r.Message, "try ") {
			v.say("%s", printable(r.Message))
		}
	}
}

// sayOften shows a message unless the last one was just now and of the same state.
func (v *localView) sayOften(same bool, r *pinnacev1.InstanceReport) {
	if same && time.Since(v.told) < sayRepeatedly || r.Message == "" {
		return
	}
	v.told = time.Now()
	switch r.State {
	case "unready":
		v.say("not ready any more: %s", printable(r.Message))
	default:
		v.say("%s", printable(r.Message))
	}
}

// showEnd shows how an attempt ended.
func (v *localView) showEnd(r *pinnacev1.InstanceReport) {
	e := r.End
	if v.c.json {
		v.event(localEvent{Event: "end", Instance: r.Instance, Attempt: r.Attempt, End: &localEnd{
			Kind: e.Kind, Code: e.Code, Signal: e.Signal, Stage: e.Stage, Detail: e.Detail, Planned: e.Planned, Final: r.Final,
		}})
		return
	}
	v.say("ended: %s", causeText(e))
	// What the process wrote was shown when it wrote it; what the machine said was not.
	if e.Kind == "kernel_panic" || e.Kind == "lost" || e.Kind == "start_failed" && e.Stage != "ready" {
		for _, line := range e.LogTail {
			v.say("| %s", printable(line))
		}
	}
}

// answered hears that there is no more output of an instance.
func (v *localView) answered(instance string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if instance == v.instance && !isClosed(v.written) {
		close(v.written)
	}
}

// lines writes what the process wrote.
func (v *localView) lines(lines []*pinnacev1.StreamLogsResponse) error {
	for _, m := range lines {
		if err := v.line(m); err != nil {
			return err
		}
	}
	return nil
}

func (v *localView) line(m *pinnacev1.StreamLogsResponse) error {
	if v.c.json {
		return v.c.printJSON(localEvent{
			Event: "log", At: m.At.AsTime().UTC(), Instance: m.Instance, Attempt: m.Attempt, Stream: m.Stream, Seq: m.Seq,
			Line: string(bytes.ToValidUTF8(m.Line, []byte("\uFFFD"))),
		})
	}
	to, raw := v.c.stdout, v.rawOut
	if m.Stream != "stdout" {
		to, raw = v.c.stderr, v.rawErr
	}
	text := m.Line
	if !raw || m.Stream == "platform" {
		text = []byte(printable(string(bytes.ToValidUTF8(m.Line, []byte("\uFFFD")))))
	}
	var out []byte
	if v.times {
		out = append(m.At.AsTime().UTC().AppendFormat(out, "2006-01-02T15:04:05.000Z"), ' ')
	}
	if m.Stream == "platform" {
		out = append(out, "-- "...)
	}
	out = append(append(out, text...), '\n')
	_, err := to.Write(out)
	return err
}

// outcome turns how it ended into what the command ends with.
func (v *localView) outcome(name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.last
	switch {
	case e == nil || e.Planned: // without an end it was stopped before it began
		v.c.say("%s was stopped", name)
		return nil
	case e.Kind == "exited" && e.Code == 0:
		v.c.say("%s has done its work", name)
		return nil
	}
	return fail(exitNotRestored, localHint(e), "%s failed: %s", name, causeText(e))
}

// localHint says what to look at.
func localHint(e *pinnacev1.Cause) string {
	switch {
	case e.Kind == "guest_oom":
		return "give it more resources.memory, or have it take less"
	case e.Kind == "start_failed" && (e.Stage == "vmm" || e.Stage == "kernel"):
		return "pinnace doctor says what this machine can do"
	case e.Kind == "start_failed" && e.Stage == "ready":
		return "rollout.boot_timeout is how long it may take, and health.ready what is asked"
	}
	return ""
}
