package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

// someServer lets agents join while it leads, and counts their reports.
type someServer struct {
	pinnacev1connect.UnimplementedAgentServiceHandler
	follows atomic.Bool
	reports atomic.Int32
}

func (s *someServer) Join(context.Context, *connect.Request[pinnacev1.JoinRequest]) (*connect.Response[pinnacev1.JoinResponse], error) {
	if s.follows.Load() {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("another server leads"))
	}
	return connect.NewResponse(&pinnacev1.JoinResponse{}), nil
}

func (s *someServer) Report(context.Context, *connect.Request[pinnacev1.ReportRequest]) (*connect.Response[pinnacev1.ReportResponse], error) {
	s.reports.Add(1)
	return connect.NewResponse(&pinnacev1.ReportResponse{}), nil
}

func (s *someServer) serve(t *testing.T) *httptest.Server {
	_, handler := pinnacev1connect.NewAgentServiceHandler(s)
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return srv
}

func TestAgentsFailOver(t *testing.T) {
	a, b, c := &someServer{}, &someServer{}, &someServer{}
	gone, follower, leader := a.serve(t), b.serve(t), c.serve(t)
	gone.Close()
	b.follows.Store(true)
	all, err := checkServers([]string{gone.URL, follower.URL, leader.URL})
	if err != nil {
		t.Fatal(err)
	}
	s := &servers{next: http.DefaultTransport, log: slog.New(slog.DiscardHandler), all: all}
	client := pinnacev1connect.NewAgentServiceClient(&http.Client{Transport: s}, gone.URL)
	join := func() error {
		_, err := client.Join(t.Context(), connect.NewRequest(&pinnacev1.JoinRequest{}))
		return err
	}
	report := func() {
		if _, err := client.Report(t.Context(), connect.NewRequest(&pinnacev1.ReportRequest{})); err != nil {
			t.Fatal(err)
		}
	}
	if err1, err2, err3 := join(), join(), join(); err1 == nil || err2 == nil || err3 != nil {
		t.Fatalf("joined: %v, %v, %v; only the third server leads", err1, err2, err3)
	}
	report()
	// It stays with the one that has let it in, and goes on from there when another one leads.
	b.follows.Store(false)
	if err := join(); err != nil {
		t.Fatal(err)
	}
	report()
	c.follows.Store(true)
	if err1, err2, err3 := join(), join(), join(); err1 == nil || err2 == nil || err3 != nil {
		t.Fatalf("joined: %v, %v, %v; only the second server leads", err1, err2, err3)
	}
	report()
	if b.reports.Load() != 1 || c.reports.Load() != 2 {
		t.Errorf("reports: %d and %d", b.reports.Load(), c.reports.Load())
	}
}

func TestServersOfAnAgent(t *testing.T) {
	got, err := checkServers([]string{"https://192.0.2.1:7401/", "https://192.0.2.1:7401", "http://127.0.0.1:7401"})
	if err != nil || len(got) != 2 || got[0].Host != "192.0.2.1:7401" || got[1].Scheme != "http" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "192.0.2.1:7401", "ftp://x", "https://", "https://x/api", "https://x?y", "https://u:p@x", "http://x\n"} {
		if _, err := checkServers([]string{bad}); err == nil {
			t.Errorf("%q is taken for the URL of a server", bad)
		}
	}
	if _, err := checkServers(nil); err == nil {
		t.Error("no server is taken for one")
	}
}
