package server

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// TestPages reads lists page by page while entries come and go: whatever is there all the time is seen exactly once, and
// nothing is seen twice.
func TestPages(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		list := map[string]bool{}
		for range r.IntN(60) {
			list[fmt.Sprintf("e%02d", r.IntN(100))] = true
		}
		stays := maps.Clone(list)
		seen := map[string]int{}
		req := &pb.ListEnvironmentsRequest{PageSize: uint32(1 + r.IntN(9))}
		for pages := 0; ; pages++ {
			page, next, err := pageOf(req, slices.Sorted(maps.Keys(list)), func(s string) string { return s }, func(s string) *pb.Environment { return &pb.Environment{Name: s} })
			if err != nil || len(page) > int(req.GetPageSize()) || (next != "" && len(page) != int(req.GetPageSize())) || pages > 200 {
				t.Fatalf("seed %d: page %d of %d entries, %v", seed, pages, len(page), err)
			}
			for _, e := range page {
				seen[e.GetName()]++
			}
			if next == "" {
				break
			}
			req.PageToken = next
			for range r.IntN(5) {
				name := fmt.Sprintf("e%02d", r.IntN(100))
				if list[name] {
					delete(list, name)
					delete(stays, name)
				} else {
					list[name] = true
				}
			}
		}
		for name, n := range seen {
			if n > 1 {
				t.Errorf("seed %d: %s is on %d pages", seed, name, n)
			}
		}
		for name := range stays {
			if seen[name] == 0 {
				t.Errorf("seed %d: %s was there all the time, and is on no page", seed, name)
			}
		}
	}
}

func TestPageBounds(t *testing.T) {
	name := func(s string) string { return s }
	env := func(s string) *pb.Environment { return &pb.Environment{Name: s} }
	var all []string
	for i := range 3000 {
		all = append(all, fmt.Sprintf("e%04d", i))
	}
	for size, want := range map[uint32]int{0: defaultPage, 1: 1, 999: 999, 1000: maxPage, 1001: maxPage, 1 << 31: maxPage} {
		page, next, err := pageOf(&pb.ListEnvironmentsRequest{PageSize: size}, all, name, env)
		if err != nil || len(page) != want || next == "" {
			t.Errorf("page_size %d: %d entries, next %q, %v, want %d", size, len(page), next, err, want)
		}
	}
	// Large entries make short pages, and one that is larger than a page is a page.
	big := func(s string) *pb.Environment { return &pb.Environment{Name: s + strings.Repeat("x", pageBytes+1)} }
	page, next, err := pageOf(&pb.ListEnvironmentsRequest{}, all, name, big)
	if err != nil || len(page) != 1 || next == "" {
		t.Errorf("large entries: %d on a page, %v", len(page), err)
	}
	for _, token := range []string{"x", "%%%", strings.Repeat("A", maxPageToken+1), pageToken(listID{1}, "e0001"), pageToken(sameList(&pb.ListHostsRequest{}), "e0001")} {
		_, _, err := pageOf(&pb.ListEnvironmentsRequest{PageToken: token}, all, name, env)
		wantCode(t, err, connect.CodeInvalidArgument, "page_token")
	}
}

// TestListsInPages asks the server for pages of one entry, and for the same with another filter.
func TestListsInPages(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.environment("prod")
	p.agent("h1")
	var releases []string
	for n, app := range []string{"api", "web", "zoo"} {
		releases = append(releases, p.release(text(app, 80+n, ""), "v1"))
		p.watch(p.deploy("dev", releases[n]).GetId())
	}
	var got []string
	for token := ""; ; {
		res, err := p.client.ListInstances(t.Context(), connect.NewRequest(&pb.ListInstancesRequest{Environment: "dev", PageSize: 1, PageToken: token}))
		if err != nil || len(res.Msg.GetInstances()) != 1 {
			t.Fatalf("%v, %v", res, err)
		}
		i := res.Msg.GetInstances()[0]
		got = append(got, fmt.Sprintf("%s/%d", i.GetApp(), i.GetOrdinal()))
		if token = res.Msg.GetNextPageToken(); token == "" {
			break
		}
		_, err = p.client.ListInstances(t.Context(), connect.NewRequest(&pb.ListInstancesRequest{Environment: "dev", All: true, PageToken: token}))
		wantCode(t, err, connect.CodeInvalidArgument, "change nothing else")
	}
	if want := []string{"api/0", "web/0", "zoo/0"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	got = nil
	for token := ""; ; {
		res, err := p.client.ListDeployments(t.Context(), connect.NewRequest(&pb.ListDeploymentsRequest{Environment: "dev", PageSize: 1, PageToken: token}))
		if err != nil || len(res.Msg.GetDeployments()) != 1 {
			t.Fatalf("%v, %v", res, err)
		}
		got = append(got, res.Msg.GetDeployments()[0].GetApp())
		if token = res.Msg.GetNextPageToken(); token == "" {
			break
		}
	}
	if want := []string{"zoo", "web", "api"}; !slices.Equal(got, want) {
		t.Errorf("got deployments of %v, want %v", got, want)
	}
	one, err := p.client.ListDeployments(t.Context(), connect.NewRequest(&pb.ListDeploymentsRequest{Environment: "dev", App: "web"}))
	if err != nil || len(one.Msg.GetDeployments()) != 1 || one.Msg.GetDeployments()[0].GetApp() != "web" {
		t.Errorf("of one app: %v, %v", one, err)
	}
	_, err = p.client.ListDeployments(t.Context(), connect.NewRequest(&pb.ListDeploymentsRequest{Environment: "dev", App: "nothing"}))
	wantCode(t, err, connect.CodeNotFound, "was never deployed")
	got = nil
	for token := ""; ; {
		res, err := p.client.ListReleases(t.Context(), connect.NewRequest(&pb.ListReleasesRequest{PageSize: 2, PageToken: token}))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range res.Msg.GetReleases() {
			got = append(got, r.GetId())
		}
		if token = res.Msg.GetNextPageToken(); token == "" {
			break
		}
	}
	slices.Reverse(got)
	if !slices.Equal(got, releases) {
		t.Errorf("got %v, want the newest first of %v", got, releases)
	}
}
