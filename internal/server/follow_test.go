package server

import (
	"context"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/memory"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// heldEngine is one that somebody else has.
type heldEngine struct {
	eventlog.Engine
	held *atomic.Bool
}

// Lead implements eventlog.Engine.
func (h heldEngine) Lead(ctx context.Context) (<-chan struct{}, error) {
	if h.held.Load() {
		return nil, eventlog.ErrHeld
	}
	return h.Engine.Lead(ctx)
}

// TestFollower: a server that follows answers what the other one has decided, refuses changes and agents, and decides
// once it leads.
func TestFollower(t *testing.T) {
	store := memory.NewStore(eventlog.LogID{})
	var held atomic.Bool
	first := newPlaneOn(t, func() eventlog.Engine { return store.Engine() })
	first.environment("one")
	held.Store(true)
	second := newPlaneFollowing(t, func() eventlog.Engine { return heldEngine{store.Engine(), &held} })
	first.environment("two")
	list := func() int {
		out, err := second.client.ListEnvironments(t.Context(), connect.NewRequest(&pb.ListEnvironmentsRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		return len(out.Msg.GetEnvironments())
	}
	second.eventually("the follower knows both", func() bool { return list() == 2 })
	_, err := second.client.CreateEnvironment(t.Context(), connect.NewRequest(&pb.CreateEnvironmentRequest{Name: "three"}))
	wantCode(t, err, connect.CodeUnavailable, "follows another one")
	_, err = (&agents{second.Server}).Join(t.Context(), connect.NewRequest(&pb.JoinRequest{Host: &pb.HostFacts{Id: "h"}}))
	wantCode(t, err, connect.CodeUnavailable, "follows another one")
	info, err := second.client.GetServerInfo(t.Context(), connect.NewRequest(&pb.GetServerInfoRequest{SeenSeq: 1}))
	if err != nil || info.Msg.GetLeads() || len(info.Msg.GetSeenHash()) != 32 {
		t.Errorf("got %v, %v", info, err)
	}
	first.kill()
	held.Store(false)
	second.eventually("the follower leads", second.leads)
	second.environment("three")
	if n := list(); n != 3 {
		t.Errorf("got %d environments, want 3", n)
	}
}

func newPlaneFollowing(t *testing.T, engine func() eventlog.Engine) *plane {
	p := &plane{t: t, engine: engine, hostTimeout: 5 * time.Second, change: func(o *Options) { o.Follow = true }}
	p.listen()
	return p
}

// TestDerivedCopy: a server that starts from the copy has the state and the journals of one that read everything,
// and a log that lacks what the copy knows is refused.
func TestDerivedCopy(t *testing.T) {
	store := memory.NewStore(eventlog.LogID{})
	dir := t.TempDir()
	p := &plane{t: t, engine: func() eventlog.Engine { return store.Engine() }, hostTimeout: 5 * time.Second, change: func(o *Options) {
		o.DerivedDir, o.LogKey = dir, ed25519.NewKeyFromSeed(make([]byte, 32))
	}}
	p.listen()
	p.environment("dev")
	p.agent("h1")
	story, d, _ := p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	for i := range 1100 { // as many as make a copy worth its while
		news := &fleet.HostJoined{Host: "h2", Architecture: "amd64", MemoryBytes: 1 + int64(i), CPUMilli: 1, DiskBytes: 1}
		if err := p.ledger.append(t.Context(), firstToken, "", news); err != nil {
			t.Fatal(err)
		}
	}
	_, state := p.ledger.Freeze()
	p.kill()
	if _, err := os.Stat(filepath.Join(dir, "derived")); err != nil {
		t.Fatal(err)
	}
	// What is not read can't be missed: the copy is what this start is made from.
	store.Tamper(func(events []eventlog.Event) []eventlog.Event {
		events[0].Payload = []byte(`{"name":"changed"}`)
		return events
	})
	p.boot()
	if _, again := p.ledger.Freeze(); again.Hash() != state.Hash() {
		t.Error("the state is another one")
	}
	if told, _, _ := p.watch(d.GetId()); told != story {
		t.Errorf("the journal was\n%s\nand is\n%s", story, told)
	}
	p.kill()
	store.Tamper(func(events []eventlog.Event) []eventlog.Event { return events[:100] })
	opts := p.options()
	if _, err := New(t.Context(), opts); err == nil {
		t.Error("started with a log that has lost events")
	}
}
