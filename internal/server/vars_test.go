package server

import (
	"maps"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func TestVars(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	more := `vars = ["URL"]`
	one := p.release(rootLast(text("api", 80, ""), more), "v1")
	deploy := &pb.DeployRequest{Environment: "dev", Release: one}
	_, err := p.client.Deploy(t.Context(), connect.NewRequest(deploy))
	wantCode(t, err, connect.CodeFailedPrecondition, "lacks variables that api needs: URL. Set them: pinnace vars set -e dev URL=…")

	set := func(req *pb.SetVarsRequest) *pb.SetVarsResponse {
		t.Helper()
		req.Environment = "dev"
		res, err := p.client.SetVars(t.Context(), connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg
	}
	if res := set(&pb.SetVarsRequest{Set: map[string]string{"URL": "one", "OTHER": "x"}}); res.GetUnchanged() || len(res.GetDeployments()) != 0 {
		t.Errorf("got %v", res)
	}
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	if got := a.vars(first.GetId()); len(got) != 1 || got["URL"] != "one" {
		t.Errorf("the instance has %v", got)
	}

	// What nobody asked for changes nothing that runs; what somebody did is deployed, once however often it is asked for.
	if res := set(&pb.SetVarsRequest{Set: map[string]string{"OTHER": "y"}}); res.GetUnchanged() || len(res.GetDeployments()) != 0 {
		t.Errorf("got %v", res)
	}
	req := &pb.SetVarsRequest{Set: map[string]string{"URL": "two"}, IdempotencyKey: "k"}
	res := set(req)
	if len(res.GetDeployments()) != 1 {
		t.Fatalf("got %v", res)
	}
	if again := set(req); len(again.GetDeployments()) != 1 || again.GetDeployments()[0].GetId() != res.GetDeployments()[0].GetId() {
		t.Errorf("the same again: %v", again)
	}
	story, d, _ := p.watch(res.GetDeployments()[0].GetId())
	second := p.serves("dev", one)
	if d.GetState() != "succeeded" || d.GetKind() != "settings" || second.GetId() == first.GetId() || a.vars(second.GetId())["URL"] != "two" {
		t.Fatalf("got %v, %v\n%s", d, a.vars(second.GetId()), story)
	}
	if unchanged, err := p.client.Deploy(t.Context(), connect.NewRequest(deploy)); err != nil || !unchanged.Msg.GetUnchanged() {
		t.Errorf("deploying what is live: %v, %v", unchanged, err)
	}

	// Later, on request; and then a deployment of the same release has something to do.
	if res := set(&pb.SetVarsRequest{Set: map[string]string{"URL": "three"}, NoDeploy: true}); len(res.GetDeployments()) != 0 || len(res.GetPending()) != 1 {
		t.Errorf("got %v", res)
	}
	if got := a.vars(p.serves("dev", one).GetId())["URL"]; got != "two" {
		t.Errorf("it has %q", got)
	}
	if _, d, _ := p.watch(p.deploy("dev", one).GetId()); d.GetState() != "succeeded" || a.vars(p.serves("dev", one).GetId())["URL"] != "three" {
		t.Errorf("got %v", d)
	}

	// Going back brings the variables back, for later deployments as well.
	back, err := p.client.Rollback(t.Context(), connect.NewRequest(&pb.RollbackRequest{Environment: "dev", App: "api", Deployment: res.GetDeployments()[0].GetId()}))
	if err != nil {
		t.Fatal(err)
	}
	if story, d, _ := p.watch(back.Msg.GetDeployment().GetId()); d.GetState() != "succeeded" || a.vars(p.serves("dev", one).GetId())["URL"] != "two" {
		t.Errorf("got %v\n%s", d, story)
	}
	list, err := p.client.ListVars(t.Context(), connect.NewRequest(&pb.ListVarsRequest{Environment: "dev"}))
	if err != nil || !maps.Equal(list.Msg.GetVars(), map[string]string{"URL": "two", "OTHER": "y"}) {
		t.Errorf("got %v, %v", list, err)
	}

	for _, tt := range []struct {
		req  *pb.SetVarsRequest
		want string
	}{
		{&pb.SetVarsRequest{Unset: []string{"URL"}}, "api is live in dev and needs URL"},
		{&pb.SetVarsRequest{Set: map[string]string{"1A": "x"}}, "variable name"},
		{&pb.SetVarsRequest{Set: map[string]string{"PINNACE_X": "x"}}, "the prefix PINNACE_ is the platform's"},
		{&pb.SetVarsRequest{Set: map[string]string{"A": "x\x00"}}, "its value is not text"},
		{&pb.SetVarsRequest{Set: map[string]string{"A": "x"}, Unset: []string{"A"}}, "to be set and unset"},
		{&pb.SetVarsRequest{Set: map[string]string{"A": strings.Repeat("x", 129<<10)}}, "the most is 256 with 131072 bytes"},
	} {
		tt.req.Environment = "dev"
		if _, err := p.client.SetVars(t.Context(), connect.NewRequest(tt.req)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
	if res := set(&pb.SetVarsRequest{Unset: []string{"OTHER", "NEVER"}}); res.GetUnchanged() {
		t.Errorf("got %v", res)
	}
}
