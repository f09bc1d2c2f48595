package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// anyHash is the hash of something.
func anyHash(digit string) string { return strings.Repeat(digit, 64) }

// identityStory is one of each event that says who somebody is.
func identityStory() []Payload {
	return []Payload{
		&EnvironmentCreated{Name: "staging"},
		&TokenCreated{Token: "tok-0123456789ab", Name: "ci", Hash: anyHash("a"), Role: Deployer, Environments: []string{"staging"}, ExpiresUnix: 4000000000},
		&TokenRevoked{Token: "tok-0123456789ab"},
		&JoinAllowed{Join: "join-0123456789ab", Hash: anyHash("c"), Host: "h2", ExpiresUnix: 4000000000},
		&HostAdmitted{Host: "h2", Join: "join-0123456789ab", Key: anyHash("b"), Admission: "adm-0123456789ab"},
		&HostRevoked{Host: "h2"},
	}
}

// refusedAs checks that an event is refused for a reason, or for any when that is nil, and leaves no trace.
func refusedAs(t *testing.T, l *teller, what string, want error, p Payload) {
	t.Helper()
	if err := l.refused(p, ""); want != nil && !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func TestTokens(t *testing.T) {
	l := newTeller(t)
	l.tell(&EnvironmentCreated{Name: "dev"})
	root := &TokenCreated{Token: "admin", Name: "admin", Hash: anyHash("0"), Role: Admin, All: true}
	l.tell(root)
	at := l.state.TokenByHash(anyHash("0")).CreatedAt
	ci := TokenCreated{Token: "tok-1", Name: "ci", Hash: anyHash("1"), Role: Deployer, Environments: []string{"dev"}, ExpiresUnix: at.Add(time.Hour).Unix()}
	change := func(f func(*TokenCreated)) *TokenCreated { c := ci; f(&c); return &c }
	for what, bad := range map[string]*TokenCreated{
		"no role":      change(func(c *TokenCreated) { c.Role = "" }),
		"unknown role": change(func(c *TokenCreated) { c.Role = "root" }),
		"no scope":     change(func(c *TokenCreated) { c.Environments = nil }),
		"two scopes":   change(func(c *TokenCreated) { c.All = true }),
		"a short hash": change(func(c *TokenCreated) { c.Hash = "ab" }),
		"no name":      change(func(c *TokenCreated) { c.Name = "" }),
		"a long name":  change(func(c *TokenCreated) { c.Name = strings.Repeat("a", 64) }),
		"no id":        change(func(c *TokenCreated) { c.Token = "" }),
	} {
		refusedAs(t, l, what, nil, bad)
	}
	refusedAs(t, l, "a foreign environment", ErrNotFound, change(func(c *TokenCreated) { c.Environments = []string{"prod"} }))
	refusedAs(t, l, "the hash of another", ErrExists, change(func(c *TokenCreated) { c.Hash = root.Hash }))
	refusedAs(t, l, "the id of another", ErrExists, change(func(c *TokenCreated) { c.Token = "admin" }))
	refusedAs(t, l, "the name of another", ErrExists, change(func(c *TokenCreated) { c.Name, c.All, c.Environments = "admin", true, nil }))
	refusedAs(t, l, "the last admin", ErrLastAdmin, &TokenRevoked{Token: "admin"})
	l.tell(&ci)
	token := l.state.TokenByHash(ci.Hash)
	if !token.Usable(at) || token.Usable(at.Add(time.Hour)) || !token.Sees("dev") || token.Sees("prod") || token.Role.Covers(Admin) || !token.Role.Covers(Viewer) {
		t.Errorf("got %+v", token)
	}
	l.tell(&TokenRevoked{Token: "tok-1"})
	if l.state.TokenByHash(ci.Hash).Usable(at) {
		t.Error("a revoked token is usable")
	}
	refusedAs(t, l, "revoked twice", ErrNotFound, &TokenRevoked{Token: "tok-1"})
	refusedAs(t, l, "the secret of a revoked one", ErrExists, change(func(c *TokenCreated) { c.Token = "tok-2" }))
	// Another admin may go, and of many that are of no use the latest are remembered.
	l.tell(&TokenCreated{Token: "tok-3", Name: "second", Hash: anyHash("3"), Role: Admin, All: true}, &TokenRevoked{Token: "admin"})
	for n := range maxRevoked + 8 {
		id := fmt.Sprintf("tok-x%d", n)
		l.tell(&TokenCreated{Token: id, Name: "x", Hash: fmt.Sprintf("%064x", n+256), Role: Viewer, All: true}, &TokenRevoked{Token: id})
	}
	if got := len(l.state.Tokens()); got != maxRevoked+1 {
		t.Errorf("%d tokens are remembered", got)
	}
	if l.state.TokenByHash(anyHash("3")) == nil {
		t.Error("the one that is of use was forgotten")
	}
}

func TestAdmissions(t *testing.T) {
	l := newTeller(t)
	l.tell(&EnvironmentCreated{Name: "dev"}, testHost)
	later := time.Now().Add(1000 * time.Hour).Unix()
	join := func(id, digit, host string) *JoinAllowed {
		return &JoinAllowed{Join: id, Hash: anyHash(digit), Host: host, ExpiresUnix: max(later, 4000000000)}
	}
	admit := func(host, join string) *HostAdmitted {
		return &HostAdmitted{Host: host, Join: join, Key: anyHash("e"), Admission: "adm-" + join}
	}
	refusedAs(t, l, "without leave", ErrNotFound, admit("h9", "join-1"))
	l.tell(join("join-1", "1", ""), join("join-2", "2", "h2"), join("join-3", "3", testHost.Host))
	refusedAs(t, l, "the same secret", ErrExists, join("join-4", "1", ""))
	refusedAs(t, l, "the same id", ErrExists, join("join-1", "4", ""))
	refusedAs(t, l, "a known host, by leave for any", ErrExists, admit(testHost.Host, "join-1"))
	refusedAs(t, l, "another host than named", ErrNotFound, admit("h3", "join-2"))
	refusedAs(t, l, "a host id that is none", nil, admit("../x", "join-1"))
	l.tell(admit("h3", "join-1"), admit("h2", "join-2"), admit(testHost.Host, "join-3"))
	refusedAs(t, l, "a second time", ErrNotFound, admit("h4", "join-1"))
	l.tell(join("join-5", "5", ""))
	refusedAs(t, l, "an admitted host, by leave for any", ErrExists, admit("h3", "join-5"))
	l.tell(join("join-6", "6", "h3"), admit("h3", "join-6"))
	if got := l.state.Admission("h3"); got.ID != "adm-join-6" || got.Join != anyHash("6") {
		t.Errorf("got %+v", got)
	}
	l.tell(&HostRevoked{Host: "h3"})
	refusedAs(t, l, "revoked twice", ErrNotFound, &HostRevoked{Host: "h3"})
	l.tell(&HostRemoved{Host: testHost.Host})
	if l.state.Admission("h3") != nil || l.state.Admission(testHost.Host) != nil || l.state.Admission("h2") == nil {
		t.Error("a revoked or removed host is admitted, or another one is not")
	}
}

// TestJoinsAfterAWrongClock: what the log was labelled with says nothing of join tokens that were made since.
func TestJoinsAfterAWrongClock(t *testing.T) {
	s := New()
	ahead := time.Date(2036, 1, 1, 0, 0, 0, 0, time.UTC)
	right := ahead.AddDate(-10, 0, 0)
	seq := uint64(0)
	tell := func(p Payload) {
		t.Helper()
		b, err := Encode(p)
		if err != nil {
			t.Fatal(err)
		}
		seq++
		e := Event{Seq: seq, At: ahead.Add(time.Duration(seq)), Actor: "admin", Type: p.EventType(), TypeVersion: p.EventVersion(), Payload: b}
		if err := s.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	join := func(id, digit string, at time.Time) {
		tell(&JoinAllowed{Join: id, Hash: anyHash(digit), ExpiresUnix: at.Unix()})
	}
	join("join-1", "1", right.Add(time.Hour))
	join("join-2", "2", right.Add(2*time.Hour))
	if s.JoinByHash(anyHash("1")) == nil || s.JoinByHash(anyHash("2")) == nil {
		t.Error("a join token is gone that was made a moment ago")
	}
	tell(&HostAdmitted{Host: "h1", Join: "join-1", Key: anyHash("e"), Admission: "adm-1"})
	join("join-3", "3", right.Add(30*24*time.Hour))
	if s.JoinByHash(anyHash("2")) != nil {
		t.Error("a join token that has expired for sure is kept")
	}
}
