package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// TestPullTriesAgain has a registry that fails some times, or for good.
func TestPullTriesAgain(t *testing.T) {
	down := errors.New("registry registry.test: cannot be reached: connection refused")
	tests := map[string]struct {
		failures int
		ready    bool
	}{
		"once":       {1, true},
		"twice":      {2, true},
		"stays down": {1000, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			// The first is long enough for a report to be sent meanwhile, however busy the machine is.
			l.timing.pullPauses = []time.Duration{time.Second, 10 * time.Millisecond}
			var asked atomic.Int32
			l.registry(func(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
				if int(asked.Add(1)) <= tt.failures {
					return nil, down
				}
				return l.image.Blob(ctx, digest, size)
			})
			l.start()
			l.assign("dev", "api-1", l.app("api", `restart = "never"`))
			l.await("api-1", "says that it tries again", func(r *pinnacev1.InstanceReport) bool {
				return strings.HasPrefix(r.Message, "try 1 of 3 failed, trying again in 1s: ") && strings.Contains(r.Message, down.Error()) && r.Attempt == 1
			})
			if tt.ready {
				if r := l.awaitState("api-1", stateReady); r.Attempt != 1 {
					t.Errorf("got attempt %d, want 1", r.Attempt)
				}
				return
			}
			end := l.awaitEnd("api-1").End
			if end.Kind != causeStartFailed || end.Stage != "pull" || !strings.Contains(end.Detail, "registry.test/api: "+down.Error()) {
				t.Errorf("got %v", end)
			}
			if n := asked.Load(); n != 3 {
				t.Errorf("asked %d times, want 3", n)
			}
		})
	}
}

// TestRefusedImageIsNotTriedAgain: pulling it again would give the same answer.
func TestRefusedImageIsNotTriedAgain(t *testing.T) {
	l := newLab(t)
	l.image = imagetest.New().RawLayer([]byte("no archive at all, but long enough to look like something else")).Build()
	l.registry(nil)
	l.start()
	l.assign("dev", "api-1", l.app("api", `restart = "never"`))
	end := l.awaitEnd("api-1").End
	if end.Kind != causeStartFailed || end.Stage != "pull" || !strings.Contains(end.Detail, image.ErrRefused.Error()) {
		t.Errorf("got %v", end)
	}
	if n := l.image.Requests(l.image.BlobDigests[0]); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// TestPullGivesUpSilence: a registry that stops in the middle of a blob is tried again.
func TestPullGivesUpSilence(t *testing.T) {
	l := newLab(t)
	l.timing.stall, l.timing.pullPauses = 50*time.Millisecond, []time.Duration{100 * time.Millisecond}
	var asked atomic.Int32
	l.registry(func(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
		if asked.Add(1) > 1 {
			return l.image.Blob(ctx, digest, size)
		}
		return &silentBody{ctx: ctx, Reader: bytes.NewReader(l.image.Blobs[digest][:10])}, nil
	})
	l.start()
	l.assign("dev", "api-1", l.app("api"))
	l.await("api-1", "says what happened", func(r *pinnacev1.InstanceReport) bool {
		return strings.Contains(r.Message, "the registry has sent nothing for 50ms")
	})
	l.awaitState("api-1", stateReady)
}

// silentBody hangs after its first bytes, as the body of a response does.
type silentBody struct {
	io.Reader
	ctx context.Context
}

func (b *silentBody) Read(p []byte) (int, error) {
	if n, _ := b.Reader.Read(p); n > 0 {
		return n, nil
	}
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

func (b *silentBody) Close() error { return nil }

// TestPullFallsBack takes a blob from the next source when the first has it not, and names all when none has.
func TestPullFallsBack(t *testing.T) {
	a := &Agent{timing: defaultTiming(), Options: Options{Source: func(repository string) image.Source {
		return sourceFunc(func(context.Context, string, int64) (io.ReadCloser, error) {
			if repository == "mirror/x" {
				return io.NopCloser(strings.NewReader("x")), nil
			}
			return nil, fmt.Errorf("not in %s", repository)
		})
	}}}
	tests := []struct {
		sources []string
		want    string
	}{
		{[]string{"a/x", "mirror/x"}, ""},
		{[]string{"a/x", "b/x"}, "a/x: not in a/x; b/x: not in b/x"},
		{nil, "the release names no repository that has its image"},
	}
	for _, tt := range tests {
		r, err := a.source(tt.sources, nil, nil).Blob(t.Context(), "sha256:", 1)
		switch {
		case err == nil && tt.want == "":
			if b, err := io.ReadAll(r); string(b) != "x" || err != nil || r.Close() != nil {
				t.Errorf("%v: got %q, %v", tt.sources, b, err)
			}
		case err == nil || err.Error() != tt.want:
			t.Errorf("%v: got %v, want %q", tt.sources, err, tt.want)
		}
	}
}

func TestEachTryBeginsWithAnotherSource(t *testing.T) {
	for try, want := range []string{"a b c", "b c a", "c a b", "a b c"} {
		if got := strings.Join(beginningAt([]string{"a", "b", "c"}, try), " "); got != want {
			t.Errorf("try %d: got %q, want %q", try, got, want)
		}
	}
	if got := beginningAt(nil, 2); len(got) != 0 {
		t.Errorf("none: got %v", got)
	}
}

// TestCachedImageNeedsNoRegistry: nor does it wait for an instance that does.
func TestCachedImageNeedsNoRegistry(t *testing.T) {
	l := newLab(t).start()
	l.deploy("api-1", l.app("api"))
	l.end()
	hang := func(ctx context.Context, _ string, _ int64) (io.ReadCloser, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	l.registry(hang)
	cached := l.image
	l.image = imagetest.New().Layer(imagetest.File("other", "")).Build()
	l.assign("dev", "big-1", l.app("big"))
	l.image = cached
	l.server.change(func() { l.server.reports = map[string][]*pinnacev1.InstanceReport{} })
	l.start()
	if r := l.awaitState("api-1", stateReady); r.Attempt != 2 || r.Stages[0].Detail != "1 layers, cached" {
		t.Errorf("got %v", r)
	}
	if r := l.awaitState("big-1", statePulling); r.Attempt != 1 {
		t.Errorf("got %v", r)
	}
}

func TestGuestThatNeverSaysHello(t *testing.T) {
	l := newLab(t)
	l.timing.hello = 50 * time.Millisecond
	l.runs("api", func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		_, _ = fmt.Fprint(g.Console, "[ 0.1] booting\r\n[ 0.2] still booting\r\n")
		<-ctx.Done()
		return vmtest.End{}
	})
	l.start()
	l.assign("dev", "api-1", l.app("api", `restart = "never"`))
	end := l.awaitEnd("api-1").End
	if want := "the guest did not come up: init has said nothing within 50ms"; end.Kind != causeStartFailed || end.Stage != "kernel" || end.Detail != want {
		t.Errorf("got %v, want %q", end, want)
	}
	if len(end.LogTail) != 2 || end.LogTail[1] != "[ 0.2] still booting" {
		t.Errorf("tail: got %q", end.LogTail)
	}
}

func TestBootTimeout(t *testing.T) {
	l := newLab(t)
	l.runs("api", playing(guesttest.Workload{Run: func(ctx context.Context, p *guesttest.Process) int {
		_ = p.Log("stdout", "waiting for the database")
		<-ctx.Done()
		return 0
	}}))
	l.start()
	// The time runs from the start of the machine, and has to be long enough on a busy host for the workload to say its line
	// and for a check to fail.
	l.assign("dev", "api-1", l.app("api", webPort, `rollout.boot_timeout = "10s"`, `restart = "on-failure"`))
	end := l.awaitAttemptEnd("api-1", 1)
	want := "not ready within boot_timeout (10s): port web (8080): connect: connection refused"
	if end.Kind != causeStartFailed || end.Stage != "ready" || end.Detail != want || end.Planned {
		t.Errorf("got %v, want %q", end, want)
	}
	if len(end.LogTail) != 1 || end.LogTail[0] != "waiting for the database" {
		t.Errorf("tail: got %q", end.LogTail)
	}
	l.await("api-1", "is started again", func(r *pinnacev1.InstanceReport) bool { return r.Attempt == 2 })
}

// TestPortIsTaken fails before anything is started, with the name of who has the port.
func TestPortIsTaken(t *testing.T) {
	l := newLab(t)
	l.proxy.bind["public/0.0.0.0:80"] = "listen on 0.0.0.0:80: address already in use by nginx (pid 812)"
	l.start()
	l.assign("dev", "api-1", l.app("api", webPort, `restart = "never"`))
	end := l.awaitEnd("api-1").End
	if end.Kind != causeStartFailed || end.Stage != "network" || !strings.Contains(end.Detail, "nginx (pid 812)") {
		t.Errorf("got %v", end)
	}
	if len(l.driver.Started()) > 0 {
		t.Error("a machine was started")
	}
	if _, bound := l.proxy.listener("public/0.0.0.0:80"); bound {
		t.Error("the proxy still tries to bind the port")
	}
}

// TestPublicPortOfAnotherApp: two apps behind one port would get each other's connections.
func TestPublicPortOfAnotherApp(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 8080))
	l.start()
	l.deploy("api-1", l.app("api", webPort))
	l.assign("prod", "api-2", l.app("api", webPort, `restart = "never"`))
	end := l.awaitEnd("api-2").End
	if want := "public port 80 is taken by app api of environment dev"; end.Stage != "network" || end.Detail != want {
		t.Errorf("got %v, want %q", end, want)
	}
	if ln, _ := l.proxy.listener("public/0.0.0.0:80"); len(ln.Backends) != 1 || ln.Backends[0].ID != "api-1" {
		t.Errorf("got %+v", ln)
	}
}
