package agent

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/network"
)

// dialNetwork is a network in which only dialling works.
type dialNetwork struct {
	Network
	dial func(ctx context.Context) (net.Conn, error)
}

func (n dialNetwork) Dial(ctx context.Context, _ string, _ netip.AddrPort) (net.Conn, error) {
	return n.dial(ctx)
}

// checked is an attempt whose workload can be dialled.
func checked(t *testing.T, src string, dial func(ctx context.Context) (net.Conn, error)) *attempt {
	t.Helper()
	m, problems := manifest.Parse([]byte("schema = \"v1\"\nname = \"api\"\nresources.memory = \"96MiB\"\n" + src))
	if m == nil {
		t.Fatal(problems)
	}
	a := &Agent{Options: Options{Network: dialNetwork{dial: dial}, Log: slog.New(slog.DiscardHandler)}, timing: defaultTiming(), reportc: make(chan struct{}, 1)}
	i := newInstance(a, &pinnacev1.Assignment{Instance: "api-1", Environment: "dev"}, &workload{manifest: m})
	at := newAttempt(i, 1)
	at.attachment = &network.Attachment{IPv4: netip.MustParsePrefix("10.100.0.2/16")}
	return at
}

func accept(context.Context) (net.Conn, error) {
	here, there := net.Pipe()
	return here, there.Close()
}

// TestHealthPace follows checks through time: short pauses until the first pass, the manifest's interval after it;
// pass and fail in a row count, in both directions; health.live begins with the first pass.
func TestHealthPace(t *testing.T) {
	const src = "ports.web.port = 80\n" +
		`health.ready = { type = "tcp", port = "web", interval = "5s", timeout = "2s", pass = 2, fail = 3 }` + "\n" +
		`health.live = { type = "tcp", port = "web", interval = "60s", timeout = "2s", fail = 1 }`
	// What the workload answers, by time.
	sick := func(at time.Duration) bool {
		return at < 1200*time.Millisecond || // starting
			at > 20*time.Second && at < 28*time.Second || // 2 of 3 failures
			at > 40*time.Second && at < 56*time.Second || // 3 failures
			at > 180*time.Second
	}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		h := watchHealth(t.Context(), checked(t, src, func(ctx context.Context) (net.Conn, error) {
			if sick(time.Since(began)) {
				return nil, errDown
			}
			return accept(ctx)
		}))
		for _, want := range []struct {
			at   time.Duration
			kind string
		}{
			// Checks at 0, 0.5, 1, 1.5 and 2 s; then every 5 s.
			{2 * time.Second, verdictReady},
			{52 * time.Second, verdictUnready}, // after failures at 42, 47 and 52 s
			{62 * time.Second, verdictReady},   // after passes at 57 and 62 s
			{182 * time.Second, verdictDead},   // live: at 62, 122 and 182 s
		} {
			v := <-h.verdicts
			if at := time.Since(began); v.kind != want.kind || at != want.at {
				t.Fatalf("got %s at %s (%s), want %s at %s", v.kind, at, v.why, want.kind, want.at)
			}
		}
		h.end()
	})
}

// TestHealthEndSaysNoMore: a check that is under way when the checks are ended has no say any more.
func TestHealthEndSaysNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := checked(t, "ports.web.port = 80", func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		h := watchHealth(t.Context(), at)
		synctest.Wait()
		at.setState(stateStopping, "stopping")
		h.end()
		if r := at.report(); r.State != stateStopping {
			t.Errorf("got %s: %s", r.State, r.Message)
		}
	})
}

// TestProbes is about what checks make of hostile or broken answers.
func TestProbes(t *testing.T) {
	respond := func(text string) func(context.Context) (net.Conn, error) {
		return func(context.Context) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				defer there.Close()
				if _, err := http.ReadRequest(bufio.NewReader(there)); err == nil {
					_, _ = io.WriteString(there, text)
				}
			}()
			return here, nil
		}
	}
	const head = "HTTP/1.1 200 OK\r\n"
	tests := map[string]struct {
		dial func(context.Context) (net.Conn, error)
		want string
	}{
		"ok":                {respond(head + "Content-Length: 2\r\n\r\nok"), ""},
		"redirect":          {respond("HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n"), "GET /up answered 302, not 200 or 204"},
		"endless body":      {respond(head + "\r\n" + strings.Repeat("x", 1<<20)), ""},
		"endless head":      {respond(head + strings.Repeat("X: y\r\n", 1<<20)), "exceeded"},
		"no answer":         {respond(""), "the connection was closed without an answer"},
		"cut answer":        {respond(head + "Content-Length: 10\r\n\r\nok"), "the connection was closed without an answer"},
		"no HTTP":           {respond("SSH-2.0\r\n"), "malformed HTTP"},
		"refused":           {func(context.Context) (net.Conn, error) { return nil, errDown }, "connection refused"},
		"nobody is at home": {func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }, "no answer in time"},
		"silent":            {func(context.Context) (net.Conn, error) { here, _ := net.Pipe(); return here, nil }, "no answer in time"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &health{attempt: checked(t, "ports.web.port = 80\n"+
					`health.ready = { type = "http", port = "web", path = "/up", status = [200, 204] }`, tt.dial)}
				err := h.readyCheck().once(t.Context())
				if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
			})
		})
	}
}

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []int
		show := throttle(time.Second, func(n int) { got = append(got, n) })
		for n := range 5 {
			show(n)
			time.Sleep(400 * time.Millisecond)
		}
		if len(got) != 2 || got[0] != 0 || got[1] != 3 {
			t.Errorf("got %v, want [0 3]", got)
		}
	})
}

func TestInOneLine(t *testing.T) {
	first := errors.New("first")
	if err := inOneLine([]error{nil, first, nil, errDown}); !errors.Is(err, first) || err.Error() != "first; dial tcp: connection refused" {
		t.Errorf("got %v", err)
	}
	if err := inOneLine([]error{nil}); err != nil {
		t.Errorf("got %v", err)
	}
}
