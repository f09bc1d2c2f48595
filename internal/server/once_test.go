package server

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// TestRepeatedRequests makes each change, undoes it, and makes the same request again, as a caller does whose answer was
// lost: nothing happens, and the answer is no error.
func TestRepeatedRequests(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a, b := p.agent("h1"), p.agent("h2")
	one, two := p.release(text("api", 80, ""), "v1"), p.release(text("api", 80, ""), "v2")
	p.watch(p.deploy("dev", one).GetId())
	ctx := t.Context()
	unchanged := func(what string, again func() error) {
		t.Helper()
		before := p.ledger.log.Head().Seq
		if err := again(); err != nil {
			t.Errorf("%s again: %v", what, err)
		}
		if after := p.ledger.log.Head().Seq; after != before {
			t.Errorf("%s again: %d events more", what, after-before)
		}
	}

	vars := func(value, key string) (*pb.SetVarsResponse, error) {
		res, err := p.client.SetVars(ctx, connect.NewRequest(&pb.SetVarsRequest{Environment: "dev", Set: map[string]string{"A": value}, IdempotencyKey: key}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	for _, set := range [][2]string{{"1", "k1"}, {"2", "k2"}} {
		if _, err := vars(set[0], set[1]); err != nil {
			t.Fatal(err)
		}
	}
	unchanged("vars", func() error {
		res, err := vars("1", "k1")
		if res.GetUnchanged() {
			t.Error("vars again: it says that nothing was changed")
		}
		return err
	})

	place := func(app, key string, labels map[string]string) error {
		_, err := p.client.SetPlacement(ctx, connect.NewRequest(&pb.SetPlacementRequest{Environment: "dev", App: app, Labels: labels, IdempotencyKey: key}))
		return err
	}
	disk := map[string]string{"disk": "nvme"}
	if err := place("db", "p1", disk); err != nil {
		t.Fatal(err)
	}
	if err := place("db", "p2", nil); err != nil {
		t.Fatal(err)
	}
	unchanged("place", func() error { return place("db", "p1", disk) })
	wantCode(t, place("other", "p1", disk), connect.CodeInvalidArgument, "used for another request")

	drain := func(end bool, key string) error {
		_, err := p.client.DrainHost(ctx, connect.NewRequest(&pb.DrainHostRequest{Host: "h2", End: end, IdempotencyKey: key}))
		return err
	}
	for n, key := range []string{"d1", "d2"} {
		if err := drain(n == 1, key); err != nil {
			t.Fatal(err)
		}
	}
	unchanged("drain", func() error { return drain(false, "d1") })

	releaseA, releaseB := a.hold(), b.hold()
	d := p.deploy("dev", two)
	p.pulls("dev")
	steer := func(s pb.Steering) error {
		res, err := p.client.Steer(ctx, connect.NewRequest(&pb.SteerRequest{Environment: "dev", App: "api", Steering: s, IdempotencyKey: "s" + s.String()}))
		if err == nil && res.Msg.GetDeployment().GetId() != d.GetId() {
			t.Errorf("%s: deployment %s, want %s", s, res.Msg.GetDeployment().GetId(), d.GetId())
		}
		return err
	}
	for _, s := range []pb.Steering{pb.Steering_STEERING_PAUSE, pb.Steering_STEERING_RESUME} {
		if err := steer(s); err != nil {
			t.Fatal(err)
		}
	}
	unchanged("pause", func() error { return steer(pb.Steering_STEERING_PAUSE) })
	if err := steer(pb.Steering_STEERING_ABORT); err != nil {
		t.Fatal(err)
	}
	releaseA()
	releaseB()
	p.watch(d.GetId())
	// By now there is no deployment that could be aborted.
	unchanged("abort", func() error { return steer(pb.Steering_STEERING_ABORT) })
	p.kill()
	p.boot()
	unchanged("abort, after a restart of the server", func() error { return steer(pb.Steering_STEERING_ABORT) })
}

// TestCommandRunsOnce: a command whose caller lost its output is not run a second time.
func TestCommandRunsOnce(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	run := func(key string) error {
		stream := p.client.Exec(t.Context())
		defer stream.CloseResponse()
		start := &pb.ExecStart{Environment: "dev", Target: "api", Argv: []string{"cat"}, IdempotencyKey: key}
		if err := stream.Send(&pb.ExecRequest{Message: &pb.ExecRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		m, err := stream.Receive()
		if err == nil && m.GetStarted() == nil {
			t.Errorf("got %v", m)
		}
		return err
	}
	for _, key := range []string{"", "", "one", "two"} {
		if err := run(key); err != nil {
			t.Fatalf("key %q: %v", key, err)
		}
	}
	wantCode(t, run("one"), connect.CodeAlreadyExists, "was started before")
	wantCode(t, run("\n"), connect.CodeInvalidArgument, "cannot be printed")
}

func TestWhatAKeyMayBe(t *testing.T) {
	for _, good := range []string{"", "a", "key 1", "schlüssel", strings.Repeat("k", maxKey)} {
		if err := checkKey(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"a\nb", "\x00", "\u202e", "\xff", strings.Repeat("k", maxKey+1)} {
		wantCode(t, checkKey(bad), connect.CodeInvalidArgument, "idempotency key")
	}
	p := newPlane(t)
	_, err := p.client.CreateEnvironment(t.Context(), connect.NewRequest(&pb.CreateEnvironmentRequest{Name: "dev", IdempotencyKey: "\x07"}))
	wantCode(t, err, connect.CodeInvalidArgument, "cannot be printed")
}

// TestKeyOfAnotherRequest: a key belongs to its request, with all that is in it; and of what came of it the log knows when
// the server that has seen the request is gone.
func TestKeyOfAnotherRequest(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.environment("prod")
	p.agent("h1")
	ctx := t.Context()
	api, two, db := p.release(text("api", 80, ""), "v1"), p.release(text("api", 80, ""), "v2"), p.release(text("db", 81, ""), "v1")
	deploy := func(env, rel, key string) (string, error) {
		res, err := p.client.Deploy(ctx, connect.NewRequest(&pb.DeployRequest{Environment: env, Release: rel, IdempotencyKey: key}))
		if err != nil {
			return "", err
		}
		return res.Msg.GetDeployment().GetId(), nil
	}
	first, err := deploy("dev", api, "k")
	if err != nil {
		t.Fatal(err)
	}
	p.watch(first)
	scale := func(count uint32, key string) error {
		res, err := p.client.Scale(ctx, connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: count, IdempotencyKey: key}))
		if err == nil {
			p.watch(res.Msg.GetDeployment().GetId())
		}
		return err
	}
	if err := scale(2, "n"); err != nil {
		t.Fatal(err)
	}
	set := func(a, b string) error {
		req := &pb.SetVarsRequest{Environment: "dev", Set: map[string]string{"A": a}, IdempotencyKey: "v"}
		if b != "" {
			req.Set["B"] = b
		}
		_, err := p.client.SetVars(ctx, connect.NewRequest(req))
		return err
	}
	if err := set("1", ""); err != nil {
		t.Fatal(err)
	}
	create := func(name, key string) error {
		_, err := p.client.CreateEnvironment(ctx, connect.NewRequest(&pb.CreateEnvironmentRequest{Name: name, IdempotencyKey: key}))
		return err
	}
	if err := create("more", "e"); err != nil {
		t.Fatal(err)
	}
	const other = "used for another request"
	check := func() {
		t.Helper()
		for what, do := range map[string]func() error{
			"another app":         func() error { _, err := deploy("dev", db, "k"); return err },
			"another release":     func() error { _, err := deploy("dev", two, "k"); return err },
			"another environment": func() error { _, err := deploy("prod", api, "k"); return err },
			"another kind":        func() error { return scale(3, "k") },
			"another count":       func() error { return scale(3, "n") },
			"another value":       func() error { return set("2", "") },
			"another name":        func() error { return create("dev", "e") },
			"another key of restart": func() error {
				_, err := p.client.Restart(ctx, connect.NewRequest(&pb.RestartRequest{Environment: "dev", App: "api", IdempotencyKey: "n"}))
				return err
			},
		} {
			if err := do(); connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), other) {
				t.Errorf("%s: got %v", what, err)
			}
		}
		// The request itself is what it was.
		if id, err := deploy("dev", api, "k"); err != nil || id != first {
			t.Errorf("the same again: got %q, %v, want %s", id, err, first)
		}
		if err := errors.Join(scale(2, "n"), set("1", ""), create("more", "e")); err != nil {
			t.Errorf("the same again: %v", err)
		}
	}
	check()
	wantCode(t, set("1", "2"), connect.CodeInvalidArgument, other) // which is known while this server is there
	p.kill()
	p.boot()
	check()
}

// TestBoundKeys: what was refused binds nothing, others may have the same key, and the oldest are forgotten.
func TestBoundKeys(t *testing.T) {
	b := newBoundKeys()
	one, two := b.digest("/a", &pb.StopRequest{App: "one"}), b.digest("/a", &pb.StopRequest{App: "two"})
	if one == two || one != b.digest("/a", &pb.StopRequest{App: "one"}) || one == b.digest("/b", &pb.StopRequest{App: "one"}) || one == newBoundKeys().digest("/a", &pb.StopRequest{App: "one"}) {
		t.Error("digests are not those of their requests")
	}
	mine := boundKey{"tok-1", "k"}
	b.bind(mine, one)
	b.bind(mine, two) // too late
	if !b.fits(mine, one) || b.fits(mine, two) || !b.fits(boundKey{"tok-2", "k"}, two) {
		t.Error("the key is not its request's")
	}
	for n := range maxBound {
		b.bind(boundKey{"tok-1", fmt.Sprint("more ", n)}, one)
	}
	if len(b.of) != maxBound || len(b.oldest) != maxBound || !b.fits(mine, two) {
		t.Errorf("%d keys are remembered, and the oldest %v", len(b.of), !b.fits(mine, two))
	}
}
