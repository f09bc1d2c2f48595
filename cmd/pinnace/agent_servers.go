package main

import (
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

// servers are the servers that an agent may belong to, as the transport of its client. It belongs to one at a time: to
// the first that lets it join, until that is gone or does not lead any more. All that it says goes there.
type servers struct {
	next http.RoundTripper
	log  *slog.Logger
	all  []*url.URL

	mu  sync.Mutex
	now int // guarded by mu; the index of the one
}

// checkServers reads a list of servers, without repetitions.
func checkServers(urls []string) ([]*url.URL, error) {
	var out []*url.URL
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			return nil, fail(exitInvalid, "it looks like https://192.0.2.1:7401", "--agent-server %q is not the URL of a server", text)
		}
		same := func(o *url.URL) bool { return o.Scheme == u.Scheme && o.Host == u.Host }
		if !slices.ContainsFunc(out, same) {
			out = append(out, u)
		}
	}
	if len(out) == 0 {
		return nil, fail(exitInvalid, "", "--agent-server names no server")
	}
	return out, nil
}

func (s *servers) current() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// leave has the next try go to the next server, unless somebody has left this one already.
func (s *servers) leave(server int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == server {
		s.now = (s.now + 1) % len(s.all)
	}
}

// RoundTrip asks the server that the agent belongs to. When one does not let it join, the next try is another one's: an
// agent joins again soon, whatever has ended.
func (s *servers) RoundTrip(r *http.Request) (*http.Response, error) {
	at := s.current()
	here := r.Clone(r.Context())
	here.URL.Scheme, here.URL.Host, here.Host = s.all[at].Scheme, s.all[at].Host, ""
	res, err := s.next.RoundTrip(here)
	if (r.URL.Path == pinnacev1connect.AgentServiceJoinProcedure || r.URL.Path == pinnacev1connect.AgentServiceAdmitProcedure) && (err != nil || res.StatusCode != http.StatusOK) {
		s.leave(at)
		if len(s.all) > 1 {
			s.log.InfoContext(r.Context(), "could not join a server; another one is next", "server", s.all[at].String(), "err", err)
		}
	}
	return res, err
}

// CloseIdleConnections makes http.Client's method of the same name work.
func (s *servers) CloseIdleConnections() {
	if c, ok := s.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
