package server

import (
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func TestRoutes(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.environment("prod")
	a := p.agent("h1")
	set := func(env string, r *pb.Route) (*pb.SetRouteResponse, error) {
		res, err := p.client.SetRoute(t.Context(), connect.NewRequest(&pb.SetRouteRequest{Environment: env, Route: r}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	must := func(env string, r *pb.Route) *pb.SetRouteResponse {
		t.Helper()
		res, err := set(env, r)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	source := text("api", 80, `ports.tls = { port = 8443, expose = "public" }`)
	one := p.release(source, "v1")

	// Without a host name the port is refused before anything starts.
	_, err := p.client.Plan(t.Context(), connect.NewRequest(&pb.PlanRequest{Environment: "dev", Target: &pb.PlanRequest_Release{Release: one}}))
	wantCode(t, err, connect.CodeFailedPrecondition, "pinnace routes set -e dev api tls --name HOST")
	_, err = p.client.Deploy(t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: one}))
	wantCode(t, err, connect.CodeFailedPrecondition, "no host name")
	if res := must("dev", &pb.Route{App: "api", Port: "tls", Names: []string{"Shop.Example.", "*.shop.example", "shop.example"}}); !res.GetIdle() || res.GetUnchanged() {
		t.Errorf("got %v", res)
	}
	plan, err := p.client.Plan(t.Context(), connect.NewRequest(&pb.PlanRequest{Environment: "dev", Target: &pb.PlanRequest_Release{Release: one}}))
	if err != nil {
		t.Fatal(err)
	}
	if last := plan.Msg.GetSteps()[len(plan.Msg.GetSteps())-2]; last.GetText() != "public port 443 (tcp) for *.shop.example, shop.example leads to ports.tls" {
		t.Errorf("the plan says %q", last.GetText())
	}
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	told := func(want ...string) {
		t.Helper()
		p.eventually("the host is told "+strings.Join(want, "; "), func() bool {
			var got []string
			for _, r := range a.routes("dev", "api") {
				got = append(got, strings.Join(append([]string{r.GetPort(), r.GetAddress(), strings.Repeat("p", int(r.GetPublicPort()%10))}, r.GetNames()...), " "))
			}
			return slices.Equal(got, want)
		})
	}
	told("tls  ppp *.shop.example shop.example")

	// A change reaches the host and touches no instance; a plan that was made before is stale.
	if res := must("dev", &pb.Route{App: "api", Port: "tls", Names: []string{"shop.example"}}); res.GetIdle() {
		t.Errorf("got %v", res)
	}
	must("dev", &pb.Route{App: "api", Port: "web", Address: "192.0.2.1", PublicPort: 8081})
	told("tls  ppp shop.example", "web 192.0.2.1 p")
	if same := p.serves("dev", one); same.GetId() != first.GetId() || same.GetAttempt() != 1 {
		t.Errorf("it was %s, and is %s in attempt %d", first.GetId(), same.GetId(), same.GetAttempt())
	}
	if res := must("dev", &pb.Route{App: "api", Port: "tls", Names: []string{"SHOP.example"}}); !res.GetUnchanged() {
		t.Errorf("got %v", res)
	}
	status, err := p.client.GetStatus(t.Context(), connect.NewRequest(&pb.GetStatusRequest{Environment: "dev"}))
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for _, e := range status.Msg.GetApps()[0].GetEndpoints() {
		addresses = append(addresses, e.GetAddress())
	}
	if !slices.Equal(addresses, []string{"shop.example:443", "192.0.2.1:8081"}) {
		t.Errorf("it is at %v", addresses)
	}

	// Names and ports belong to one.
	_, err = set("prod", &pb.Route{App: "api", Port: "tls", Names: []string{"shop.example"}})
	wantCode(t, err, connect.CodeFailedPrecondition, "host name shop.example is held by app api in environment dev")
	must("prod", &pb.Route{App: "api", Port: "tls", Names: []string{"prod.example"}})
	must("prod", &pb.Route{App: "api", Port: "web", Address: "192.0.2.2", PublicPort: 8081})
	p.watch(p.deploy("prod", one).GetId())
	_, err = set("prod", &pb.Route{App: "api", Port: "web", PublicPort: 8081})
	wantCode(t, err, connect.CodeFailedPrecondition, "public port 8081 (tcp) is held by app api in environment dev")
	_, err = set("dev", &pb.Route{App: "api", Port: "web", Names: []string{"a.example"}, PublicPort: 8081})
	wantCode(t, err, connect.CodeFailedPrecondition, `only with edge = "sni"`)
	unset := func(port string) error {
		_, err := p.client.UnsetRoute(t.Context(), connect.NewRequest(&pb.UnsetRouteRequest{Environment: "dev", App: "api", Port: port}))
		return err
	}
	wantCode(t, unset("tls"), connect.CodeFailedPrecondition, "no host name")
	wantCode(t, unset("none"), connect.CodeNotFound, "ports.none")
	if err := unset("web"); err != nil {
		t.Error(err)
	}
	told("tls  ppp shop.example")
	for _, bad := range []*pb.Route{nil, {App: "api", Port: "web"}, {App: "api", Port: "web", PublicPort: 70000}, {App: "api", Port: "tls", Names: []string{"a b"}}} {
		_, err := set("dev", bad)
		wantCode(t, err, connect.CodeInvalidArgument, "")
	}
	list, err := p.client.ListRoutes(t.Context(), connect.NewRequest(&pb.ListRoutesRequest{Environment: "prod", PageSize: 1}))
	if err != nil || len(list.Msg.GetRoutes()) != 1 || list.Msg.GetRoutes()[0].GetPort() != "tls" || list.Msg.GetNextPageToken() == "" {
		t.Errorf("got %v, %v", list, err)
	}
}
