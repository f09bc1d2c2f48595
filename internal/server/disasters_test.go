package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/memory"
)

// fullEngine has no room while it is told so.
type fullEngine struct {
	eventlog.Engine
	full    atomic.Bool
	refused atomic.Int64
}

func (e *fullEngine) Commit(ctx context.Context, events []eventlog.Event) error {
	if e.full.Load() {
		e.refused.Add(1)
		return errors.New("database or disk is full")
	}
	return e.Engine.Commit(ctx, events)
}

// TestServerOnAFullDisk: while its log takes nothing, a server answers questions, refuses changes and stops nothing, and
// it goes on with what it was at when there is room.
func TestServerOnAFullDisk(t *testing.T) {
	engine := &fullEngine{Engine: memory.New()}
	p := newPlaneOn(t, func() eventlog.Engine { return engine })
	p.environment("dev")
	a := p.agent("h1")
	release := a.hold()
	d := p.deploy("dev", p.release(text("api", 80, ""), "v1"))
	p.pulls("dev")
	engine.full.Store(true)
	_, err := p.client.CreateEnvironment(t.Context(), connect.NewRequest(&pb.CreateEnvironmentRequest{Name: "prod"}))
	wantCode(t, err, connect.CodeUnavailable, "could not write its log")
	release() // what the instance becomes is to be recorded, and a step of the deployment to be decided
	before := engine.refused.Load()
	p.eventually("the loop tries, and tries again", func() bool { return engine.refused.Load() >= before+3 })
	if i := p.instances("dev", false); len(i) != 1 || i[0].GetState() != stateReady {
		t.Errorf("instances on a full disk: %v", i)
	}
	select {
	case err := <-p.ended:
		t.Fatalf("the server ended: %v", err)
	default:
	}
	engine.full.Store(false)
	if _, ended, _ := p.watch(d.GetId()); ended.GetState() != "succeeded" {
		t.Errorf("with room again: the deployment ended %v", ended)
	}
	p.environment("prod")
	if got := a.running(); len(got) != 1 {
		t.Errorf("the host runs %q", got)
	}
}

// wallClock is one that can be set. What it says has no monotonic part, as after a restart.
type wallClock struct{ off atomic.Int64 }

func (c *wallClock) now() time.Time        { return time.Now().Add(time.Duration(c.off.Load())).Round(0) }
func (c *wallClock) set(off time.Duration) { c.off.Store(int64(off)) }
func (c *wallClock) server(opts *Options)  { opts.Now = c.now }

// TestClockTenYearsOff sets the clock of a server ten years off, while it runs and over a restart, and sets it right
// again. Meanwhile hosts are not let in, because their certificates are not good then; nothing is stopped, replaced or
// lost. Afterwards hosts come back by themselves, all that counts time goes on counting, and the log has one order.
func TestClockTenYearsOff(t *testing.T) {
	const years = 10 * 365 * 24 * time.Hour
	for name, off := range map[string]time.Duration{"ahead": years, "behind": -years} {
		for _, restarts := range []bool{false, true} {
			what := name + ", it runs"
			if restarts {
				what = name + ", over restarts"
			}
			t.Run(what, func(t *testing.T) { clockOff(t, off, restarts) })
		}
	}
}

func clockOff(t *testing.T, off time.Duration, restarts bool) {
	store := memory.NewStore(eventlog.LogID{})
	clock := &wallClock{}
	p := &plane{t: t, engine: func() eventlog.Engine { return store.Engine() }, hostTimeout: 500 * time.Millisecond, change: func(o *Options) {
		clock.server(o)
		o.LostAfter = 100 * time.Millisecond
	}}
	p.listen()
	set := func(off time.Duration) {
		if restarts {
			p.kill()
		}
		clock.set(off)
		if restarts {
			p.boot()
		}
	}
	p.environment("dev")
	a := p.agent("h1")
	held := strings.Replace(text("api", 80, `rollout.boot_timeout = "1s"`), `hold = "0s"`, `hold = "1s"`, 1)
	one, two, stuck := p.release(held, "one"), p.release(held, "two"), p.release(held, "stuck")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)

	set(off)
	p.environment("while-it-is-wrong")
	p.eventually("the host is not let in", func() bool {
		on, _ := p.observed.connected("h1", clock.now())
		return !on
	})
	time.Sleep(4 * p.opts.LostAfter) // there is nothing to wait for: that nothing happens is the point
	for _, i := range p.instances("dev", true) {
		if i.GetId() != first.GetId() || i.GetEndedAt() != nil || i.GetState() == "stopping" {
			t.Errorf("while the clock was wrong: %v", i)
		}
	}

	set(0)
	p.eventually("the host is back", func() bool {
		on, _ := p.observed.connected("h1", clock.now())
		return on
	})
	p.eventually("its instance is ready", func() bool {
		i := p.instances("dev", false)
		return len(i) == 1 && i[0].GetState() == stateReady
	})
	if i := p.serves("dev", one); i.GetId() != first.GetId() || len(a.running()) != 1 {
		t.Errorf("the instance was replaced by %v", i)
	}
	// What waits for a time to pass does not wait for ten years: the time to boot, the time to hold, also over a restart.
	if _, d, _ := p.watch(p.deploy("dev", stuck).GetId()); d.GetState() != "rolled-back" {
		t.Errorf("an instance that does not boot: the deployment ended %q", d.GetState())
	}
	next := p.deploy("dev", two).GetId()
	p.eventually("the new instance is ready", func() bool {
		return slices.ContainsFunc(p.instances("dev", false), func(i *pb.Instance) bool { return i.GetRelease() == two && i.GetState() == stateReady })
	})
	p.kill()
	p.boot()
	if _, d, _ := p.watch(next); d.GetState() != "succeeded" {
		t.Errorf("after it all: the deployment ended %q", d.GetState())
	}
	// Tokens with an end can be made, and used.
	p.agent("h2")

	// The log is one history, in whose times everything comes after what came before.
	if head, err := eventlog.Verify(t.Context(), p.ledger.log.Read(t.Context(), 0), p.ledger.log.Genesis()); err != nil || head != p.ledger.log.Head() {
		t.Errorf("the log: %v, %v", head, err)
	}
}
