package agent

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/image"
)

// TestLogins: an image is pulled with the login that came with the placement, which is on no disk and in no report.
func TestLogins(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 8080))
	var mu sync.Mutex
	var used []Login
	l.sourceAs = func(_ string, login Login) image.Source {
		mu.Lock()
		defer mu.Unlock()
		used = append(used, login)
		return l
	}
	l.start()
	rel := l.app("api", webPort)
	registry, _, _ := strings.Cut(rel.Sources[0], "/")
	as := func(password string) func(*pinnacev1.Assignment) {
		return func(a *pinnacev1.Assignment) {
			a.Logins = []*pinnacev1.AssignedLogin{
				{Registry: registry, Username: "robot", Password: []byte(password)},
				{Registry: "elsewhere.example", Username: "other", Password: []byte(password)},
			}
		}
	}
	l.assign("dev", "api-1", rel, as(canary))
	l.awaitState("api-1", stateReady)
	mu.Lock()
	if !slices.Contains(used, Login{registry, "robot", canary}) || slices.ContainsFunc(used, func(l Login) bool { return l.Username != "robot" }) {
		t.Errorf("it was pulled as %v", used)
	}
	mu.Unlock()
	l.wantNoCanary()
	if shown := fmt.Sprintf("%v %+v %#v %s", used[0], used[0], used[0], used[0].LogValue()); strings.Contains(shown, canary) {
		t.Errorf("a login shows as %s", shown)
	}
	l.stop("api-1")
	l.awaitEnd("api-1")
}

func TestLoginIsForOneHostAndPort(t *testing.T) {
	var used []string
	a := &Agent{timing: defaultTiming(), Options: Options{
		Source: func(repository string) image.Source {
			used = append(used, repository+" as nobody")
			return sourceFunc(func(context.Context, string, int64) (io.ReadCloser, error) { return nil, io.EOF })
		},
		SourceAs: func(repository string, l Login) image.Source {
			used = append(used, repository+" as "+l.Username)
			return sourceFunc(func(context.Context, string, int64) (io.ReadCloser, error) { return nil, io.EOF })
		},
	}}
	logins := []Login{{"r.example:5000", "one", "p"}, {"r.example", "two", "p"}}
	a.source([]string{"r.example:5000/x", "R.example/x", "r.example:5001/x", "r.example.evil/x", "evil/r.example/x"}, logins, nil)
	want := []string{"r.example:5000/x as one", "R.example/x as two", "r.example:5001/x as nobody", "r.example.evil/x as nobody", "evil/r.example/x as nobody"}
	if !slices.Equal(used, want) {
		t.Errorf("got %q, want %q", used, want)
	}
}
