package server

import (
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// TestSecretsOfAnEarlierEnvironment: an environment that was made again goes on counting versions, so that going back to a
// deployment from before never takes another content for that of then.
func TestSecretsOfAnEarlierEnvironment(t *testing.T) {
	s := newSafe(t)
	s.environment("dev")
	a := s.agent("h1")
	rel := s.release(text("api", 80, `secrets.api = { env = ["KEY"] }`), "v1")
	s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("KEY", "before")})
	before := s.deploy("dev", rel)
	s.watch(before.GetId())
	if _, err := s.client.DestroyEnvironment(t.Context(), connect.NewRequest(&pb.DestroyEnvironmentRequest{Environment: "dev", Confirm: "dev"})); err != nil {
		t.Fatal(err)
	}
	s.eventually("the environment has gone", func() bool {
		res, err := s.client.ListEnvironments(t.Context(), connect.NewRequest(&pb.ListEnvironmentsRequest{}))
		return err == nil && len(res.Msg.GetEnvironments()) == 0
	})

	s.environment("dev")
	if res := s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("KEY", "after")}); res.GetVersion() != 2 {
		t.Errorf("the first version is %d", res.GetVersion())
	}
	s.watch(s.deploy("dev", rel).GetId())
	s.has(a, s.serves("dev", rel).GetId(), "api", 2, values("KEY", "after"))
	rollback := &pb.RollbackRequest{Environment: "dev", App: "api", Deployment: before.GetId()}
	_, err := s.client.Rollback(t.Context(), connect.NewRequest(rollback))
	wantCode(t, err, connect.CodeFailedPrecondition, "its secrets api are gone")

	// The same after a restart.
	s.kill()
	s.boot()
	if res := s.put(&pb.PutSecretRequest{Bundle: "other", Set: values("KEY", "x")}); res.GetVersion() != 2 {
		t.Errorf("the first version of another bundle is %d", res.GetVersion())
	}
	if res := s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("KEY", "later"), NoDeploy: true}); res.GetVersion() != 3 {
		t.Errorf("the next version is %d", res.GetVersion())
	}
}
