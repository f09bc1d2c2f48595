package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// startInterval is the longest pause between two checks of an instance that has never been ready: a long
// interval is for what runs, not for waiting until it does.
const startInterval = 500 * time.Millisecond

// What a health loop finds out.
const (
	verdictReady   = "ready"
	verdictUnready = "unready"
	verdictDead    = "dead" // health.live failed: restart
)

type verdict struct {
	kind string
	why  string
}

// health checks one attempt, from the host or through its guest.
type health struct {
	*attempt
	verdicts chan verdict

	mu      sync.Mutex
	failure string // guarded by mu: what the last failed check said
}

func newHealth(t *attempt) *health {
	return &health{attempt: t, verdicts: make(chan verdict)}
}

func (h *health) lastFailure() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failure
}

// run checks until ctx is done.
func (h *health) run(ctx context.Context) {
	var live sync.WaitGroup
	defer live.Wait()
	ready := h.readyCheck()
	passes, fails, isReady, wasReady := 0, 0, false, false
	for {
		err := ready.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			passes, fails = 0, fails+1
			h.mu.Lock()
			h.failure = err.Error()
			h.mu.Unlock()
			if !wasReady {
				h.setState(stateStarted, "not ready yet: %s", err)
			}
		} else {
			passes, fails = passes+1, 0
		}
		switch {
		case !isReady && passes >= ready.pass:
			isReady = true
			if !h.tell(ctx, verdict{kind: verdictReady}) {
				return
			}
			if !wasReady && h.workload.manifest.Health.Live != nil {
				live.Go(func() { h.watchLive(ctx) })
			}
			wasReady = true
		case isReady && fails >= ready.fail:
			isReady = false
			if !h.tell(ctx, verdict{verdictUnready, "health.ready failed: " + err.Error()}) {
				return
			}
		}
		pause := ready.interval
		if !wasReady {
			pause = min(pause, startInterval)
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// watchLive starts after the first ready pass, so that no grace period is needed.
func (h *health) watchLive(ctx context.Context) {
	live := h.check(h.workload.manifest.Health.Live)
	for fails := 0; ; {
		if !sleep(ctx, live.interval) {
			return
		}
		err := live.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			fails = 0
			continue
		}
		if fails++; fails >= live.fail {
			h.tell(ctx, verdict{verdictDead, err.Error()})
			return
		}
	}
}

func (h *health) tell(ctx context.Context, v verdict) bool {
	select {
	case h.verdicts <- v:
		return true
	case <-ctx.Done():
		return false
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// check is one probe with its pace.
type check struct {
	interval, timeout time.Duration
	pass, fail        int
	probe             func(ctx context.Context) error
}

func (c *check) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return c.probe(ctx)
}

// readyCheck is the manifest's ready check, or the default one: every TCP port accepts a connection. With
// no TCP port there is nothing to ask; the instance is ready when its process runs, and the rollout's hold
// shows whether it stays alive.
func (h *health) readyCheck() *check {
	m := h.workload.manifest
	if m.Health.Ready != nil {
		return h.check(m.Health.Ready)
	}
	return &check{interval: 5 * time.Second, timeout: 2 * time.Second, pass: 1, fail: 3, probe: func(ctx context.Context) error {
		for name, port := range m.Ports {
			if port.Protocol != "tcp" {
				continue
			}
			if err := h.dialPort(ctx, port); err != nil {
				return fmt.Errorf("port %s (%d): %w", name, port.Port, err)
			}
		}
		return nil
	}}
}

func (h *health) check(p *manifest.Probe) *check {
	c := &check{interval: p.Interval, timeout: p.Timeout, pass: p.Pass, fail: p.Fail}
	port := h.workload.manifest.Ports[p.Port]
	switch p.Type {
	case "exec":
		c.probe = func(ctx context.Context) error { return h.exec(ctx, p) }
	case "http":
		c.probe = func(ctx context.Context) error { return h.get(ctx, port, p) }
	default:
		c.probe = func(ctx context.Context) error { return h.dialPort(ctx, port) }
	}
	return c
}

func (h *health) address(port manifest.Port) netip.AddrPort {
	return netip.AddrPortFrom(h.attachment.IPv4.Addr(), uint16(port.Port)) //nolint:gosec // The manifest bounds it.
}

func (h *health) dialPort(ctx context.Context, port manifest.Port) error {
	conn, err := h.agent.Network.Dial(ctx, h.assignment.Environment, h.address(port))
	if err != nil {
		return shortDialError(err)
	}
	return conn.Close()
}

func (h *health) get(ctx context.Context, port manifest.Port, p *manifest.Probe) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return h.agent.Network.Dial(ctx, h.assignment.Environment, h.address(port))
		},
		MaxResponseHeaderBytes: 64 << 10,
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // A redirect is a failure; its status says so.
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.address(port).String()+p.Path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "pinnace-health")
	res, err := client.Do(req)
	if err != nil {
		return shortDialError(err)
	}
	_, readErr := io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	if err := errors.Join(readErr, res.Body.Close()); err != nil {
		return err
	}
	if !slices.Contains(p.Status, res.StatusCode) {
		return fmt.Errorf("GET %s answered %d, not %s", p.Path, res.StatusCode, strings.Trim(fmt.Sprint(p.Status), "[]"))
	}
	return nil
}

func (h *health) exec(ctx context.Context, p *manifest.Probe) error {
	res, err := h.guest.Exec(ctx, p.Command, p.Timeout)
	switch {
	case err != nil:
		return err
	case res.Error != "":
		return errors.New(res.Error)
	case res.TimedOut:
		return fmt.Errorf("%s did not end within %s", p.Command[0], p.Timeout)
	case res.Code != 0:
		return fmt.Errorf("%s exited with status %d", p.Command[0], res.Code)
	}
	return nil
}

// shortDialError leaves out what a person who reads it knows already.
func shortDialError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		if op.Timeout() {
			return errors.New("no answer")
		}
		return op.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	return err
}
