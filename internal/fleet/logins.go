package fleet

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Bounds of the registries' logins.
const (
	MaxLogins   = 1024 // in all
	maxRegistry = 255
	maxUsername = 255
)

// RegistryLoggedIn keeps what hosts pull images with from one registry: of an environment, or of all when that is empty.
// The password is sealed in the store that secrets are in.
type RegistryLoggedIn struct {
	Environment string `json:"environment,omitempty"`
	Registry    string `json:"registry"` // host or host:port
	Username    string `json:"username"`
	Sealed      string `json:"sealed"`
	Recipient   string `json:"recipient"`
}

// RegistryLoggedOut forgets a login.
type RegistryLoggedOut struct {
	Environment string `json:"environment,omitempty"`
	Registry    string `json:"registry"`
}

// RegistryLogin is what is known of a login: everything but its password.
type RegistryLogin struct {
	Environment, Registry, Username string
	Sealed, Recipient               string
	SetAt                           time.Time
	SetBy                           string
}

// EventType and EventVersion implement Payload.
func (*RegistryLoggedIn) EventType() string     { return "registry.logged-in" }
func (*RegistryLoggedOut) EventType() string    { return "registry.logged-out" }
func (*RegistryLoggedIn) EventVersion() uint16  { return 1 }
func (*RegistryLoggedOut) EventVersion() uint16 { return 1 }

// registryShape is a host or an address, with or without a port, as references to images have them.
var registryShape = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?$`)

// CheckLogin says why there cannot be such a login.
func CheckLogin(registry, username string) error {
	switch {
	case len(registry) > maxRegistry || !registryShape.MatchString(registry):
		return fmt.Errorf("registry %.*q: want host or host:port, in lower case", maxRegistry, registry)
	case username == "" || len(username) > maxUsername || strings.ContainsFunc(username, func(r rune) bool { return r < ' ' || r == 0x7f || r == ':' }):
		return fmt.Errorf("user name %.*q: want 1 to %d bytes without a colon and control characters", maxUsername, username, maxUsername)
	}
	return nil
}

// Login returns the login of an environment at a registry, or that of all environments. It is nil when there is neither.
func (s *State) Login(environment, registry string) *RegistryLogin {
	if l := s.logins.get(appKey(environment, registry)); l != nil {
		return l
	}
	return s.logins.get(appKey("", registry))
}

// OwnLogin returns the login of exactly that environment, of all of them when it is empty; or nil.
func (s *State) OwnLogin(environment, registry string) *RegistryLogin {
	return s.logins.get(appKey(environment, registry))
}

// Logins returns the logins that an environment has, with those of all environments; everything when it is empty.
func (s *State) Logins(environment string) []*RegistryLogin {
	return slices.DeleteFunc(s.logins.sorted(), func(l *RegistryLogin) bool {
		return environment != "" && l.Environment != "" && l.Environment != environment
	})
}

func (p *RegistryLoggedIn) fold(s *State, e Event) error {
	if p.Environment != "" && s.environments.get(p.Environment) == nil {
		return fmt.Errorf("environment %s: %w", p.Environment, ErrNotFound)
	}
	if err := CheckLogin(p.Registry, p.Username); err != nil {
		return err
	}
	if !sealedShape.MatchString(p.Sealed) || p.Recipient == "" || len(p.Recipient) > maxRecipient {
		return fmt.Errorf("login at %s: it does not say where its password is sealed, or for whom", p.Registry)
	}
	key := appKey(p.Environment, p.Registry)
	if s.logins.get(key) == nil && len(s.logins.rows) >= MaxLogins {
		return fmt.Errorf("there are %d logins at registries, which is the most", MaxLogins)
	}
	s.logins.put(key, &RegistryLogin{
		Environment: p.Environment, Registry: p.Registry, Username: p.Username, Sealed: p.Sealed, Recipient: p.Recipient, SetAt: e.At, SetBy: e.Actor,
	})
	return nil
}

func (p *RegistryLoggedOut) fold(s *State, _ Event) error {
	key := appKey(p.Environment, p.Registry)
	if s.logins.get(key) == nil {
		return fmt.Errorf("login at %s: %w", p.Registry, ErrNotFound)
	}
	s.logins.put(key, nil)
	return nil
}
