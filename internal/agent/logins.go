package agent

import (
	"log/slog"
	"strings"

	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// A Login is what one registry wants to know of who pulls.
type Login struct {
	// Registry is host or host:port, as it stands before the path in the names of repositories.
	Registry, Username, Password string
}

var _ slog.LogValuer = Login{}

// LogValue keeps passwords out of logs.
func (l Login) LogValue() slog.Value { return slog.StringValue(l.String()) }

// String is the login without its password.
func (l Login) String() string { return l.Username + " at " + l.Registry }

// GoString implements fmt.GoStringer.
func (l Login) GoString() string { return l.String() }

// splitLogins returns an assignment without its logins, and these. Like secrets they are apart from the assignment, which is
// kept on disk, compared and shown. Unlike secrets they are not sealed for the next agent: an image that is not here has
// to wait until the server is back.
func splitLogins(asg *pinnacev1.Assignment) (*pinnacev1.Assignment, []Login) {
	if len(asg.Logins) == 0 {
		return asg, nil
	}
	open := proto.CloneOf(asg)
	open.Logins = nil
	var logins []Login
	for _, l := range asg.Logins {
		logins = append(logins, Login{Registry: l.Registry, Username: l.Username, Password: string(l.Password)})
	}
	return open, logins
}

// loginsOf are those that came with the last assignment of an instance.
func (a *Agent) loginsOf(instance string) []Login {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.logins[instance]
}

// allLogins are those of all instances, for what is pulled on behalf of nobody: parts of images that are here already.
func (a *Agent) allLogins() []Login {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []Login
	for _, logins := range a.logins {
		all = append(all, logins...)
	}
	return all
}

// loginFor is the login at the registry of a repository, which is good for exactly that host and port.
func loginFor(logins []Login, repository string) (Login, bool) {
	registry, _, _ := strings.Cut(repository, "/")
	for _, l := range logins {
		if l.Registry == strings.ToLower(registry) {
			return l, true
		}
	}
	return Login{}, false
}
