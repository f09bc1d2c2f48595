package registry

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// place is where something that is named by a digest can be asked for.
type place struct {
	repo   name.Repository
	mirror bool
}

// attempts of a place: a mirror gets one, because somebody else can be asked.
func (p place) attempts() int {
	if p.mirror {
		return 1
	}
	return maxAttempts
}

// places are the mirrors of a repository that are worth asking for a digest, and the repository itself at last.
func (c *Client) places(repo name.Repository, digest string) []place {
	var list []place
	for _, m := range c.host(repo.RegistryStr()).Mirrors {
		mirrored, err := name.NewRepository(m+"/"+repo.RepositoryStr(), name.StrictValidation)
		if err == nil && c.mirrors.useful(mirrored, digest) {
			list = append(list, place{repo: mirrored, mirror: true})
		}
	}
	return append(list, place{repo: repo})
}

var hostForm = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)

// CheckHost says whether s can be a key of Options.Hosts, or a token host: host or host:port.
func CheckHost(s string) error {
	if _, err := name.NewRegistry(s, name.StrictValidation); err != nil || !hostForm.MatchString(s) {
		return fmt.Errorf("%q is not a host or host:port, as image references have it", printable(s))
	}
	return nil
}

// CheckMirror says whether s can be a mirror: host, host:port or host:port/prefix.
func CheckMirror(s string) error {
	host, prefix, _ := strings.Cut(s, "/")
	repo, err := name.NewRepository(s+"/x", name.StrictValidation)
	if err != nil || CheckHost(host) != nil || hostKey(repo.RegistryStr()) != hostKey(host) || prefix == "" && strings.Contains(s, "/") || strings.Contains("/"+prefix, "//") {
		return fmt.Errorf("%q is not a mirror: write it as HOST, HOST:PORT or HOST:PORT/PREFIX, without a scheme", printable(s))
	}
	return nil
}

// fromPlaces does get at each place of a digest until one has what is right.
func fromPlaces[T any](ctx context.Context, c *Client, repo name.Repository, digest string, get func(place) (T, error)) (T, error) {
	for _, p := range c.places(repo, digest) {
		v, err := get(p)
		if err == nil || !p.mirror || ctx.Err() != nil {
			return v, err
		}
		c.passOver(p, repo, digest, err)
	}
	panic("unreachable: the last place is no mirror")
}

// passOver notes that a mirror could not be used, for as long as that is likely to stay so.
func (c *Client) passOver(p place, repo name.Repository, digest string, err error) {
	c.mirrors.failed(p.repo, digest, err, c.limits.shun)
	if c.mirrors.news(p.repo, err) {
		hint := ""
		if e, ok := errors.AsType[*Error](err); ok && (errors.Is(e.Kind, ErrForbidden) || errors.Is(e.Kind, ErrTLS)) {
			hint = "; " + e.Hint // what is wrong with the settings; the others pass by themselves
		}
		c.options.Notice(fmt.Sprintf("mirror %s is passed over for %s: %v%s", p.repo.RegistryStr(), repo.RegistryStr(), err, hint))
	}
}

// mirrorHealth remembers what is wrong with mirrors. The zero value knows of nothing.
type mirrorHealth struct {
	mu   sync.Mutex
	down map[string]time.Time // by host: until when it is not asked; guarded by mu
	lied map[string]bool      // by repository@digest; guarded by mu
	told map[string]time.Time // by host and kind of error: when there was a notice; guarded by mu
}

// maxLies bounds the memory. A mirror with more wrong content than this is forgiven some.
const maxLies = 4096

func (m *mirrorHealth) useful(repo name.Repository, digest string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.lied[repo.Name()+"@"+digest] && !time.Now().Before(m.down[repo.RegistryStr()])
}

func (m *mirrorHealth) failed(repo name.Repository, digest string, err error, shun time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down == nil {
		m.down, m.lied, m.told = map[string]time.Time{}, map[string]bool{}, map[string]time.Time{}
	}
	switch {
	case errors.Is(err, ErrWrongContent):
		if len(m.lied) >= maxLies {
			clear(m.lied)
		}
		m.lied[repo.Name()+"@"+digest] = true
	case !errors.Is(err, ErrNotFound):
		m.down[repo.RegistryStr()] = time.Now().Add(shun)
	}
}

// news says whether a failure of a mirror is worth a notice: not the same one every time.
func (m *mirrorHealth) news(repo name.Repository, err error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	kind := ""
	if e, ok := errors.AsType[*Error](err); ok {
		kind = e.Kind.Error()
	}
	key := repo.RegistryStr() + " " + kind
	if last, ok := m.told[key]; ok && time.Since(last) < 10*time.Minute {
		return false
	}
	m.told[key] = time.Now()
	return true
}
