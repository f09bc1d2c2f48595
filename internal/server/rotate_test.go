package server

import (
	"maps"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// rotate has an instance take the secrets that it is assigned, as with a signal; a.mu is held.
func (i *fakeInstance) rotate(asg *pb.Assignment) {
	versions := map[string]uint64{}
	for _, s := range asg.GetSecrets() {
		versions[s.GetBundle()] = s.GetVersion()
	}
	if len(versions) == 0 || maps.Equal(versions, i.now.GetSecretVersions()) {
		return
	}
	r := proto.CloneOf(i.now)
	r.SecretVersions = versions
	spoilt := false
	for _, version := range versions {
		spoilt = spoilt || version == i.agent.spoilt
	}
	switch {
	case spoilt && r.GetState() == stateReady:
		r.State, r.Message = "unready", "GET / answered 500"
	case !spoilt && r.GetState() == "unready":
		r.State, r.Message = stateReady, ""
	}
	i.now = r
	select {
	case i.agent.report <- struct{}{}:
	default:
	}
}

// TestSignalIsGated: a version that comes by a signal comes to one instance after the other, and to none after the first
// that is not ready with it; then all have that of before.
func TestSignalIsGated(t *testing.T) {
	s := newSafe(t)
	s.environment("dev")
	a := s.agent("h1")
	s.put(&pb.PutSecretRequest{Bundle: "tls", Set: values("key", "k1")})
	one := s.release(text("api", 80, "secrets.tls = { path = \"/tls\", on_change = \"signal:SIGHUP\" }"), "v1")
	s.succeeds(s.deploy("dev", one))
	scaled, err := s.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: 3}))
	if err != nil {
		t.Fatal(err)
	}
	s.succeeds(scaled.Msg.GetDeployment())
	before := s.instances("dev", false)
	all := func(version uint64, value string) {
		t.Helper()
		for _, i := range before {
			s.has(a, i.GetId(), "tls", version, values("key", value))
		}
		if n := len(s.instances("dev", true)); n != 3 {
			t.Errorf("%d instances, want the three of before", n)
		}
	}
	all(1, "k1")
	const given = "gets the new secrets"
	good := s.put(&pb.PutSecretRequest{Bundle: "tls", Set: values("key", "k2")})
	story, d, _ := s.watch(good.GetDeployments()[0].GetId())
	if d.GetState() != "succeeded" || d.GetKind() != "secrets" || strings.Count(story, given) != 3 {
		t.Fatalf("got %v\n%s", d, story)
	}
	all(2, "k2")

	a.mu.Lock()
	a.spoilt = 3
	a.mu.Unlock()
	bad := s.put(&pb.PutSecretRequest{Bundle: "tls", Set: values("key", "k3")})
	story, d, _ = s.watch(bad.GetDeployments()[0].GetId())
	if d.GetState() != "rolled-back" || strings.Count(story, given) != 1 || !strings.Contains(d.GetReason(), "is not with the new secrets: unready, GET / answered 500") {
		t.Fatalf("got %v\n%s", d, story)
	}
	all(2, "k2")
	s.eventually("all are ready again", func() bool {
		ready := 0
		for _, i := range s.instances("dev", false) {
			if i.GetState() == stateReady {
				ready++
			}
		}
		return ready == 3
	})

	// What is not ready anyway gets a version at once, and may be mended by it.
	a.mu.Lock()
	a.spoilt = 2
	for _, i := range a.instances {
		i.now = proto.CloneOf(i.now)
		i.now.State, i.now.Message = "unready", "GET / answered 500"
	}
	a.mu.Unlock()
	s.eventually("none is ready", func() bool { return len(s.serving("dev")) == 0 })
	mend := s.put(&pb.PutSecretRequest{Bundle: "tls", Set: values("key", "k4")})
	s.succeeds(mend.GetDeployments()[0])
	all(4, "k4")
}

// TestSignalOverRestart: a server that starts in the middle goes on, and takes nothing back.
func TestSignalOverRestart(t *testing.T) {
	s := newSafe(t)
	s.environment("dev")
	a := s.agent("h1")
	s.put(&pb.PutSecretRequest{Bundle: "tls", Set: values("key", "k1")})
	slow := strings.Replace(text("api", 80, "secrets.tls = { path = \"/tls\", on_change = \"signal:SIGHUP\" }"), `rollout.hold = "0s"`, `rollout.hold = "1s"`, 1)
	one := s.release(slow, "v1")
	s.succeeds(s.deploy("dev", one))
	i := s.serves("dev", one)
	put := s.put(&pb.PutSecretRequest{Bundle: "tls", Set: values("key", "k2")})
	s.has(a, i.GetId(), "tls", 2, values("key", "k2"))
	s.kill()
	s.boot()
	s.succeeds(put.GetDeployments()[0])
	s.has(a, i.GetId(), "tls", 2, values("key", "k2"))
	if n := len(s.instances("dev", true)); n != 1 {
		t.Errorf("%d instances, want the one", n)
	}
}
