package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/image"
)

// privateRegistries are what a host pulls from, by the name of the registry: each gives its blobs to those with a login.
type privateRegistries struct {
	mu    sync.Mutex
	down  bool     // guarded by mu
	asked []string // guarded by mu: "user: repository", for each blob
	lab   *lab
	liar  string // a registry that says that it has everything, and has nothing
}

var errPrivate = errors.New("refused by the registry: it is private")

// as is what a repository gives somebody; user is empty for somebody without a login.
func (p *privateRegistries) as(repository, user string) image.Source {
	return sourceFunc(func(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.asked = append(p.asked, user+": "+repository)
		switch {
		case p.down:
			return nil, errDown
		case p.liar != "" && strings.HasPrefix(repository, p.liar+"/"):
			return io.NopCloser(io.LimitReader(zeroes{}, size)), nil
		case user == "":
			return nil, errPrivate
		}
		return p.lab.image.Blob(ctx, digest, size)
	})
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (p *privateRegistries) set(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down, p.asked = down, nil
}

func (p *privateRegistries) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// newPrivate is a lab whose image is in a private registry.
func newPrivate(t *testing.T) (*lab, *privateRegistries) {
	l := newLab(t)
	p := &privateRegistries{lab: l}
	l.sourceOf = func(repository string) image.Source { return p.as(repository, "") }
	l.sourceAs = func(repository string, as Login) image.Source { return p.as(repository, as.Username) }
	l.runs("api", l.serves(&answer{}, 8080))
	return l, p
}

// inside is a port that no other environment can be in the way of.
const inside = `ports.web = { port = 8080 }`

// loggedIn is an assignment with a login at the registry of the lab.
func loggedIn(a *pinnacev1.Assignment) {
	a.Logins = []*pinnacev1.AssignedLogin{{Registry: "registry.test", Username: "robot", Password: []byte("p")}}
}

// refusedImage waits until an instance has given up because it may not have its image.
func (l *lab) refusedImage(instance, why string) {
	l.t.Helper()
	r := l.awaitEnd(instance)
	if text := r.String(); !strings.Contains(text, "has to show that it may have it") || !strings.Contains(text, why) {
		l.t.Errorf("%s ended with %v", instance, r)
	}
}

// TestCachedImageOfAnother: an image that one environment has pulled is not there for another one without a right to it. Who
// has pulled it goes on without the registry, also after a restart of the agent.
func TestCachedImageOfAnother(t *testing.T) {
	l, p := newPrivate(t)
	l.start()
	rel := l.app("api", inside, `restart = "never"`)
	l.assign("dev", "api-1", rel, loggedIn)
	l.awaitState("api-1", stateReady)

	// Without a login, with the registry and without.
	p.set(false)
	l.assign("prod", "api-2", rel)
	l.refusedImage("api-2", errPrivate.Error())
	p.set(true)
	l.assign("prod", "api-3", rel, loggedIn)
	l.refusedImage("api-3", "connection refused")

	// Who has it by its own right needs no registry, after a restart of the agent neither.
	p.set(true)
	l.assign("dev", "api-4", rel)
	l.awaitState("api-4", stateReady)
	l.end()
	l.start()
	l.assign("dev", "api-5", rel)
	l.awaitState("api-5", stateReady)
	if asked := p.requests(); len(asked) != 0 {
		t.Errorf("the registry was asked by %v", asked)
	}

	// With a login it is asked once for each layer, and from then on not any more.
	p.set(false)
	l.assign("prod", "api-6", rel, loggedIn)
	l.awaitState("api-6", stateReady)
	if asked := p.requests(); len(asked) != 1 || asked[0] != "robot: registry.test/api" {
		t.Errorf("the registry was asked by %v", asked)
	}
	p.set(true)
	l.assign("prod", "api-7", rel)
	l.awaitState("api-7", stateReady)
	for _, i := range []string{"api-1", "api-4", "api-5", "api-6", "api-7"} {
		l.stop(i)
		l.awaitEnd(i)
	}
}

// TestCachedImageOfALiar: a registry that has never given a layer on this host proves no right to it by saying that it has it.
func TestCachedImageOfALiar(t *testing.T) {
	l, p := newPrivate(t)
	l.start()
	rel := l.app("api", inside, `restart = "never"`)
	l.assign("dev", "api-1", rel, loggedIn)
	l.awaitState("api-1", stateReady)
	p.mu.Lock()
	p.liar = "evil.test"
	p.mu.Unlock()
	evil := l.app("api", inside, `restart = "never"`)
	evil.Sources = []string{"evil.test/api"}
	l.assign("prod", "api-2", evil)
	l.refusedImage("api-2", "corrupt")
	if found, err := l.store.Verify(t.Context(), image.VerifyOptions{}); err != nil || len(found.Damaged) != 0 {
		t.Errorf("what is stored has changed: %v, %v", found, err)
	}

	// One that really has all of it does: the image was moved to another registry.
	p.mu.Lock()
	p.liar = ""
	p.mu.Unlock()
	moved := l.app("api", inside, `restart = "never"`)
	moved.Sources = []string{"moved.test/api"}
	l.assign("prod", "api-3", moved, func(a *pinnacev1.Assignment) {
		a.Logins = []*pinnacev1.AssignedLogin{{Registry: "moved.test", Username: "robot", Password: []byte("p")}}
	})
	l.awaitState("api-3", stateReady)
	for _, i := range []string{"api-1", "api-3"} {
		l.stop(i)
		l.awaitEnd(i)
	}
}

// TestImagesFromBeforeProofs: what ran in an environment before anybody asked runs on, without the registry.
func TestImagesFromBeforeProofs(t *testing.T) {
	l, p := newPrivate(t)
	l.start()
	rel := l.app("api", inside, `restart = "never"`)
	l.assign("dev", "api-1", rel, loggedIn)
	l.awaitState("api-1", stateReady)
	l.stop("api-1")
	l.awaitEnd("api-1")
	l.end()
	path := filepath.Join(l.dir, "data", "images-proved.json")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	p.set(true)
	l.start()
	l.assign("dev", "api-2", rel)
	l.awaitState("api-2", stateReady)
	l.assign("prod", "api-3", rel)
	l.refusedImage("api-3", "connection refused")
	l.stop("api-2")
	l.awaitEnd("api-2")
	l.end()
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.make(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("with half a record: got %v", err)
	}
}
