package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

// pagedServer has hosts and variables in pages of one, and no end of environments.
type pagedServer struct {
	pinnacev1connect.UnimplementedControlServiceHandler
}

func (pagedServer) GetServerInfo(context.Context, *connect.Request[pinnacev1.GetServerInfoRequest]) (*connect.Response[pinnacev1.GetServerInfoResponse], error) {
	return connect.NewResponse(&pinnacev1.GetServerInfoResponse{ClusterId: strings.Repeat("0", 32), HeadHash: make([]byte, 32)}), nil
}

func (pagedServer) ListHosts(_ context.Context, req *connect.Request[pinnacev1.ListHostsRequest]) (*connect.Response[pinnacev1.ListHostsResponse], error) {
	next := map[string]string{"": "a", "a": "b", "b": ""}
	return connect.NewResponse(&pinnacev1.ListHostsResponse{
		Hosts: []*pinnacev1.Host{{Id: "behind-" + req.Msg.GetPageToken()}}, NextPageToken: next[req.Msg.GetPageToken()],
	}), nil
}

func (pagedServer) ListVars(_ context.Context, req *connect.Request[pinnacev1.ListVarsRequest]) (*connect.Response[pinnacev1.ListVarsResponse], error) {
	next := map[string]string{"": "a", "a": "b", "b": ""}
	return connect.NewResponse(&pinnacev1.ListVarsResponse{
		Vars: map[string]string{"V" + req.Msg.GetPageToken(): req.Msg.GetEnvironment()}, NextPageToken: next[req.Msg.GetPageToken()],
	}), nil
}

func (pagedServer) ListEnvironments(context.Context, *connect.Request[pinnacev1.ListEnvironmentsRequest]) (*connect.Response[pinnacev1.ListEnvironmentsResponse], error) {
	return connect.NewResponse(&pinnacev1.ListEnvironmentsResponse{NextPageToken: "more"}), nil
}

// TestFollowPages: a command shows all of a list, and one page to whoever asks for one.
func TestFollowPages(t *testing.T) {
	_, handler := pinnacev1connect.NewControlServiceHandler(pagedServer{})
	srv := httptest.NewServer(handler)
	defer srv.Close()
	var out, talk bytes.Buffer
	c := &cli{stdin: strings.NewReader(""), stdout: &out, stderr: &talk, getenv: func(name string) string {
		return map[string]string{"HOME": t.TempDir(), "PINNACE_SERVER": srv.URL, "PINNACE_ENV": "dev"}[name]
	}}
	for args, want := range map[string][]string{
		"host list --json": {`"behind-"`, `"behind-a"`, `"behind-b"`, `"next_page_token":""`},
		"vars list --json": {`"V":"dev"`, `"Va":"dev"`, `"Vb":"dev"`},
	} {
		out.Reset()
		if code := c.run(t.Context(), strings.Fields(args)); code != exitOK {
			t.Fatalf("%s: status %d: %s", args, code, talk.String())
		}
		for _, w := range want {
			if got := strings.ReplaceAll(out.String(), `": "`, `":"`); !strings.Contains(got, w) {
				t.Errorf("%s: got %s, want %s in it", args, got, w)
			}
		}
	}
	if code := c.run(t.Context(), []string{"env", "list"}); code != exitInternal || !strings.Contains(talk.String(), fmt.Sprintf("more than %d pages", maxPages)) {
		t.Errorf("a list without end: status %d, %s", code, talk.String())
	}
	client := pinnacev1connect.NewControlServiceClient(srv.Client(), srv.URL, connect.WithInterceptors(followPages()))
	one, err := client.ListHosts(t.Context(), connect.NewRequest(&pinnacev1.ListHostsRequest{PageSize: 1}))
	if err != nil || len(one.Msg.GetHosts()) != 1 || one.Msg.GetNextPageToken() != "a" {
		t.Errorf("one page: got %v, %v", one, err)
	}
}
