package server

import (
	"errors"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/memory"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// TestLogOfANewerVersion: a server that does not know what is in its log does not start, and leaves it as it is.
func TestLogOfANewerVersion(t *testing.T) {
	store := memory.NewStore(eventlog.LogID{})
	engine := func() eventlog.Engine { return store.Engine() }
	p := newPlaneOn(t, engine)
	p.environment("dev")
	p.kill()

	// What a later version might write.
	log, err := eventlog.Open(t.Context(), engine(), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = log.Append(t.Context(), eventlog.Append{Stream: "environment/dev", Expect: eventlog.AnyVersion, Type: "environment.painted", TypeVersion: 1, Actor: "admin", Payload: []byte(`{"name":"dev"}`)})
	if err != nil {
		t.Fatal(err)
	}
	head := log.Head()
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}

	s, err := New(t.Context(), p.options())
	if err == nil {
		_ = s.Close()
	}
	if !errors.Is(err, fleet.ErrNewer) {
		t.Errorf("starting: got %v, want %v", err, fleet.ErrNewer)
	}
	log, err = eventlog.Open(t.Context(), engine(), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := log.Head(); got != head {
		t.Errorf("the log ends at %v, and before at %v", got, head)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestVersionsInEveryHello: who joins is told the server's version, the server knows theirs, and a client asks for it.
func TestVersionsInEveryHello(t *testing.T) {
	p := newPlane(t)
	p.agent("h1", func(h *pb.HostFacts) { h.Version = "v1.2.3" })
	hosts, err := p.client.ListHosts(t.Context(), connect.NewRequest(&pb.ListHostsRequest{}))
	if err != nil || len(hosts.Msg.GetHosts()) != 1 || hosts.Msg.GetHosts()[0].GetVersion() != "v1.2.3" {
		t.Errorf("hosts: got %v, %v", hosts, err)
	}
	info, err := p.client.GetServerInfo(t.Context(), connect.NewRequest(&pb.GetServerInfoRequest{}))
	if err != nil || info.Msg.GetVersion() != "test" {
		t.Errorf("server: got %v, %v", info, err)
	}
	// An agent that was upgraded says so when it joins again, with all that it had.
	p.environment("dev")
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	if _, err := (&agents{p.Server}).Join(t.Context(), connect.NewRequest(&pb.JoinRequest{Host: &pb.HostFacts{
		Id: "h1", Name: "h1", Architecture: "amd64", MemoryBytes: 4 << 30, CpuMilli: 2000, DiskBytes: 64 << 30, Driver: "fake", Version: "v1.3.0",
	}})); err != nil {
		t.Fatal(err)
	}
	if got := p.serves("dev", one); got.GetId() != first.GetId() {
		t.Errorf("%s was succeeded by %s", first.GetId(), got.GetId())
	}
	hosts, err = p.client.ListHosts(t.Context(), connect.NewRequest(&pb.ListHostsRequest{}))
	if err != nil || hosts.Msg.GetHosts()[0].GetVersion() != "v1.3.0" {
		t.Errorf("hosts: got %v, %v", hosts, err)
	}
}
