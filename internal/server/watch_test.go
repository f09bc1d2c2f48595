package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
)

func TestStreamLogs(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	read := func(target string) (lines []*pb.StreamLogsResponse, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		stream, err := p.client.StreamLogs(ctx, connect.NewRequest(&pb.StreamLogsRequest{Environment: "dev", Target: target}))
		if err != nil {
			return nil, err
		}
		for stream.Receive() {
			lines = append(lines, stream.Msg())
		}
		return lines, stream.Err()
	}
	id := p.instances("dev", false)[0].GetId()
	for _, target := range []string{"api", "api/0", id, id[:8]} {
		lines, err := read(target)
		if err != nil || len(lines) != 3 {
			t.Fatalf("%s: got %d lines, %v", target, len(lines), err)
		}
		for n, l := range lines {
			if l.GetInstance() != id || l.GetSeq() != uint64(n) || !strings.HasSuffix(string(l.GetLine()), "of "+id) {
				t.Errorf("%s: got %v", target, l)
			}
		}
	}
	_, err := read("nobody")
	wantCode(t, err, connect.CodeNotFound, "does not exist")

	// A follower stays, and its request goes when it goes.
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := p.client.StreamLogs(ctx, connect.NewRequest(&pb.StreamLogsRequest{Environment: "dev", Target: "api", Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
	}
	cancel()
	p.eventually("the request is taken back", func() bool {
		p.logs.mu.Lock()
		defer p.logs.mu.Unlock()
		return len(p.logs.wants) == 0
	})
}

// TestLogsOfWhatComesLater: whoever follows the logs of an app gets those of instances that are placed meanwhile, however
// old the views are that agents are served from. An agent can't answer for what it was not told of.
func TestLogsOfWhatComesLater(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	first := p.instances("dev", false)[0].GetId()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := p.client.StreamLogs(ctx, connect.NewRequest(&pb.StreamLogsRequest{Environment: "dev", Target: "api", Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	p.views.watched(int(maxView / viewEach)) // so many that a view serves for long
	p.deploy("dev", p.release(text("api", 80, ""), "v2"))
	for stream.Receive() {
		if stream.Msg().GetInstance() != first {
			return
		}
	}
	t.Error("nothing came from the next instance: ", stream.Err())
}

func TestReadEvents(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := p.client.ReadEvents(ctx, connect.NewRequest(&pb.ReadEventsRequest{After: 1, Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	prev, wantSeq := p.ledger.log.Genesis(), uint64(2) // behind the first token
	next := func() {
		t.Helper()
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
		for _, e := range stream.Msg().GetEvents() {
			if e.GetSeq() != wantSeq {
				t.Fatalf("got event %d, want %d", e.GetSeq(), wantSeq)
			}
			wantSeq++
			prev = eventlog.Hash(e.GetHash())
		}
	}
	next()
	p.environment("prod")
	next()
	info, err := p.client.GetServerInfo(t.Context(), connect.NewRequest(&pb.GetServerInfoRequest{}))
	if err != nil || info.Msg.GetHeadSeq() != 3 || eventlog.Hash(info.Msg.GetHeadHash()) != prev {
		t.Errorf("got %v, %v", info, err)
	}
	old, err := p.client.ReadEvents(ctx, connect.NewRequest(&pb.ReadEventsRequest{After: 2}))
	if err != nil || !old.Receive() || len(old.Msg().GetEvents()) != 1 || old.Msg().GetEvents()[0].GetSeq() != 3 || old.Receive() {
		t.Errorf("reading after event 2: %v, %v", err, old.Err())
	}
	ahead, err := p.client.ReadEvents(ctx, connect.NewRequest(&pb.ReadEventsRequest{After: 99, Follow: true}))
	if err != nil || ahead.Receive() {
		t.Errorf("a follower that has seen more than there is got %v", err)
	}
	wantCode(t, ahead.Err(), connect.CodeFailedPrecondition, "ends at event 3")
}

// TestHostThatIsAway checks that a lone host can go and come back without anything being decided meanwhile.
func TestHostThatIsAway(t *testing.T) {
	p := newPlane(t)
	p.kill()
	p.hostTimeout = 300 * time.Millisecond
	p.boot()
	p.environment("dev")
	a := p.agent("h1")
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	before, head := p.serves("dev", one), p.ledger.log.Head().Seq

	a.stop()
	p.eventually("the host counts as away", func() bool {
		return p.instances("dev", false)[0].GetState() == stateUnknown
	})
	_, err := p.client.Deploy(t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: p.release(text("api", 80, ""), "v2")}))
	wantCode(t, err, connect.CodeUnavailable, "1 of 1 host is not connected")
	hosts, err := p.client.ListHosts(t.Context(), connect.NewRequest(&pb.ListHostsRequest{}))
	if err != nil || hosts.Msg.GetHosts()[0].GetConnected() || hosts.Msg.GetHosts()[0].GetLastSeenAt() == nil {
		t.Errorf("got %v, %v", hosts, err)
	}
	head++ // the release
	p.agent("h1")
	p.eventually("the instance is there again", func() bool {
		i := p.instances("dev", false)[0]
		return i.GetId() == before.GetId() && i.GetState() == stateReady
	})
	if now := p.ledger.log.Head().Seq; now != head {
		t.Errorf("%d events were written because a host was away", now-head)
	}
}

func TestPlaneServesStatus(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	one := p.release(text("api", 80, "[ports.admin]\nport = 9090\n"), "v1")
	p.watch(p.deploy("dev", one).GetId())
	out, err := p.client.GetStatus(t.Context(), connect.NewRequest(&pb.GetStatusRequest{Environment: "dev"}))
	if err != nil || len(out.Msg.GetApps()) != 1 {
		t.Fatalf("got %v, %v", out, err)
	}
	app := out.Msg.GetApps()[0]
	if app.GetCount() != 1 || app.GetReady() != 1 || app.GetRelease() != one || app.GetVirtualAddress() != "10.101.0.1" || len(app.GetEndpoints()) != 2 {
		t.Errorf("got %v", app)
	}
	if e := app.GetEndpoints(); e[0].GetAddress() != "api.internal:9090" || e[1].GetAddress() != ":80" {
		t.Errorf("got %v", e)
	}
	i, err := p.client.GetInstance(t.Context(), connect.NewRequest(&pb.GetInstanceRequest{Environment: "dev", Instance: "api/0"}))
	if err != nil || i.Msg.GetInstance().GetHost() != "h1" {
		t.Errorf("got %v, %v", i, err)
	}
	hosts, err := p.client.ListHosts(t.Context(), connect.NewRequest(&pb.ListHostsRequest{}))
	if err != nil || hosts.Msg.GetHosts()[0].GetMemoryBookedBytes() != (128+2+64)<<20 {
		t.Errorf("got %v, %v", hosts, err)
	}
	set := p.assignments(p.freshView(), "h1")
	if len(set.GetAssignments()) != 1 || len(set.GetReleases()) != 1 || set.GetReleases()[0].GetPlatform().GetArchitecture() != "amd64" ||
		len(set.GetEnvironments()) != 1 || len(set.GetEnvironments()[0].GetApps()[0].GetPorts()) != 2 {
		t.Errorf("got %v", set)
	}
}
