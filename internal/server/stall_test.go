package server

import (
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// TestStalledServer: a server that stood still for longer than a host may be away finds that it has heard of nobody. That
// is no reason to give anybody up.
func TestStalledServer(t *testing.T) {
	p := newPlane(t)
	p.kill()
	var ahead atomic.Int64
	p.change = func(o *Options) {
		o.HostTimeout, o.LostAfter = 10*time.Second, 5*time.Second
		o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}
	p.boot()
	p.environment("dev")
	p.agent("h1")
	p.agent("h2")
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	two, err := p.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: 2}))
	if err != nil {
		t.Fatal(err)
	}
	p.succeeds(two.Msg.GetDeployment())
	before := p.serving("dev")
	if len(before) != 2 {
		t.Fatalf("got %v", before)
	}
	for range 5 {
		ahead.Add(int64(time.Minute))
		p.eventually("both are heard of", func() bool {
			x, _ := p.observed.connected("h1", p.now())
			y, _ := p.observed.connected("h2", p.now())
			return x && y && maps.Equal(p.serving("dev"), before)
		})
		if n := len(p.instances("dev", true)); n != 2 {
			t.Fatalf("%d instances, want the two of before: %v", n, p.instances("dev", true))
		}
	}
}
