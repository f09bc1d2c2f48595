package registry

import (
	"github.com/google/go-containerregistry/pkg/authn"
)

// login is a keychain with one entry before those of another.
type login struct {
	host               string // as hostKey writes it
	username, password string
	next               authn.Keychain
}

// LoggedIn returns a keychain that has a user name and a password for exactly one registry, host or host:port as references
// have it, and for all others what next has; the user's docker configuration when that is nil.
func LoggedIn(registry, username, password string, next authn.Keychain) authn.Keychain {
	if next == nil {
		next = authn.DefaultKeychain
	}
	return login{hostKey(registry), username, password, next}
}

// Resolve implements authn.Keychain.
func (l login) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if hostKey(r.RegistryStr()) == l.host {
		return authn.FromConfig(authn.AuthConfig{Username: l.username, Password: l.password}), nil
	}
	return l.next.Resolve(r)
}

// String keeps the password out of what is printed.
func (l login) String() string { return l.username + " at " + l.host }

// GoString implements fmt.GoStringer.
func (l login) GoString() string { return l.String() }
