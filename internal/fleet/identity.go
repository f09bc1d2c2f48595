package fleet

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Role is what a token allows to do. Each includes the ones before it.
type Role string

// The roles of tokens.
const (
	// Viewer sees what there is, logs included.
	Viewer Role = "viewer"
	// Deployer changes what runs.
	Deployer Role = "deployer"
	// Admin decides what there is at all, and who may do what.
	Admin Role = "admin"
)

// rank orders roles; 0 is none.
func (r Role) rank() int { return slices.Index([]Role{Viewer, Deployer, Admin}, r) + 1 }

// Covers reports whether a role allows what another one does. What is no role covers nothing and is covered by nothing.
func (r Role) Covers(other Role) bool { return other.rank() > 0 && r.rank() >= other.rank() }

// Like all records, these are replaced as a whole.
type (
	// Token is somebody who may call the API.
	Token struct {
		ID, Name, Hash string
		Role           Role
		// All is true when it is not limited to Environments, which are sorted.
		All          bool
		Environments []string
		CreatedAt    time.Time
		CreatedBy    string
		// ExpiresAt is zero for a token that does not expire, RevokedAt for one that was not revoked.
		ExpiresAt, RevokedAt time.Time
	}

	// Join is leave for one host to join.
	Join struct {
		ID, Hash, Host string
		ExpiresAt      time.Time
	}

	// Admission is what makes certificates of a host good.
	Admission struct {
		Host, ID string
		// Join is the hash of the secret that it was for, and Key that of the key which the host had then.
		Join, Key string
		At        time.Time
	}
)

// Usable reports whether a token is good at a time.
func (t *Token) Usable(now time.Time) bool {
	return t.RevokedAt.IsZero() && (t.ExpiresAt.IsZero() || now.Before(t.ExpiresAt))
}

// Sees reports whether an environment is within the token's.
func (t *Token) Sees(environment string) bool {
	if t.All {
		return true
	}
	_, found := slices.BinarySearch(t.Environments, environment)
	return found
}

// Includes reports whether a token allows everything that another one does.
func (t *Token) Includes(other *Token) bool {
	return t.Role.Covers(other.Role) && t.Surrounds(other)
}

// Surrounds reports whether all environments of another token are within the token's.
func (t *Token) Surrounds(other *Token) bool {
	if t.All || other.All {
		return t.All
	}
	return !slices.ContainsFunc(other.Environments, func(e string) bool { return !t.Sees(e) })
}

// Bounds of what is remembered: tokens that are not revoked, those that are, leaves to join, and environments of one
// token.
const (
	maxTokens            = 2000
	maxRevoked           = 256
	maxJoins             = 1000
	maxTokenEnvironments = 64
)

var (
	hashShape      = regexp.MustCompile(`^[0-9a-f]{64}$`)
	tokenNameShape = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	hostShape      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)
)

// ValidTokenName reports whether name may name a token.
func ValidTokenName(name string) bool { return tokenNameShape.MatchString(name) }

// ValidHost reports whether id may be that of a host that joins.
func ValidHost(id string) bool { return hostShape.MatchString(id) }

// TokenByHash returns the token whose secret has a hash; nil when there is none.
func (s *State) TokenByHash(hash string) *Token { return s.tokens.get(hash) }

// Tokens returns all tokens by name and id, with those that were revoked of late.
func (s *State) Tokens() []*Token {
	all := s.tokens.sorted()
	slices.SortFunc(all, func(a, b *Token) int { return strings.Compare(a.Name+" "+a.ID, b.Name+" "+b.ID) })
	return all
}

// JoinByHash returns the leave to join whose secret has a hash; nil when there is none.
func (s *State) JoinByHash(hash string) *Join { return s.joins.get(hash) }

// Admission returns that of a host; nil when it may not speak for itself.
func (s *State) Admission(host string) *Admission { return s.admissions.get(host) }

func (p *TokenCreated) fold(s *State, e Event) error {
	t := &Token{
		ID: p.Token, Name: p.Name, Hash: p.Hash, Role: p.Role, All: p.All, Environments: slices.Clone(p.Environments),
		CreatedAt: e.At, CreatedBy: e.Actor,
	}
	if p.ExpiresUnix != 0 {
		t.ExpiresAt = time.Unix(p.ExpiresUnix, 0).UTC()
	}
	slices.Sort(t.Environments)
	switch {
	case p.Token == "" || !ValidTokenName(p.Name):
		return fmt.Errorf("token %q named %q: want an id, and as the name %s", p.Token, p.Name, tokenNameShape)
	case !hashShape.MatchString(p.Hash):
		return fmt.Errorf("token %s: %q is not the hash of a secret", p.Name, p.Hash)
	case p.Role.rank() == 0:
		return fmt.Errorf("token %s: unknown role %q", p.Name, p.Role)
	case p.All == (len(p.Environments) > 0) || len(p.Environments) > maxTokenEnvironments:
		return fmt.Errorf("token %s: it is for all environments or for 1 to %d, not for %d", p.Name, maxTokenEnvironments, len(p.Environments))
	case s.tokens.get(p.Hash) != nil:
		return fmt.Errorf("a token with the secret of %s: %w", p.Name, ErrExists)
	}
	for _, env := range t.Environments {
		if s.environments.get(env) == nil {
			return fmt.Errorf("environment %s: %w", env, ErrNotFound)
		}
	}
	usable := 0
	for _, other := range s.tokens.rows {
		switch {
		case other.ID == p.Token:
			return fmt.Errorf("token %s: %w", p.Token, ErrExists)
		case !other.Usable(e.At):
		case other.Name == p.Name && other.All == t.All && slices.Equal(other.Environments, t.Environments):
			// Among others it may be that who makes the token does not know of that one.
			return fmt.Errorf("a token named %s: %w", p.Name, ErrExists)
		default:
			usable++
		}
	}
	if usable >= maxTokens {
		return fmt.Errorf("there are %d tokens, which is the most: revoke those that nobody needs", usable)
	}
	s.tokens.put(p.Hash, t)
	s.forgetTokens(e.At)
	return nil
}

func (p *TokenRevoked) fold(s *State, e Event) error {
	var token *Token
	otherAdmin := false
	for _, t := range s.tokens.rows {
		if t.ID == p.Token {
			token = t
		} else if t.Role == Admin && t.All && t.Usable(e.At) {
			otherAdmin = true
		}
	}
	switch {
	case token == nil || !token.RevokedAt.IsZero():
		return fmt.Errorf("token %q: %w", p.Token, ErrNotFound)
	case token.Role == Admin && token.All && !otherAdmin:
		return fmt.Errorf("token %s: %w", token.Name, ErrLastAdmin)
	}
	s.tokens.change(token.Hash, func(t *Token) { t.RevokedAt = e.At })
	s.forgetTokens(e.At)
	return nil
}

// endTokensOf takes an environment from the tokens for it, so that they are not for the next one of its name. One that was
// for no other is of no use any more.
func (s *State) endTokensOf(environment string, now time.Time) {
	for _, token := range s.tokens.sorted() {
		if token.All || !token.Sees(environment) {
			continue
		}
		s.tokens.change(token.Hash, func(t *Token) {
			t.Environments = without(t.Environments, environment)
			if len(t.Environments) == 0 && t.RevokedAt.IsZero() {
				t.RevokedAt = now
			}
		})
	}
}

// forgetTokens keeps the latest of those that are of no use any more.
func (s *State) forgetTokens(now time.Time) {
	var useless []*Token
	for _, t := range s.tokens.rows {
		if !t.Usable(now) {
			useless = append(useless, t)
		}
	}
	if len(useless) <= maxRevoked {
		return
	}
	slices.SortFunc(useless, func(a, b *Token) int {
		if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.Hash, b.Hash)
	})
	for _, t := range useless[:len(useless)-maxRevoked] {
		s.tokens.put(t.Hash, nil)
	}
}

// MaxJoinLife is for how long leave to join is given at most.
const MaxJoinLife = 7 * 24 * time.Hour

func (p *JoinAllowed) fold(s *State, e Event) error {
	j := &Join{ID: p.Join, Hash: p.Hash, Host: p.Host, ExpiresAt: time.Unix(p.ExpiresUnix, 0).UTC()}
	switch {
	case p.Join == "" || !hashShape.MatchString(p.Hash):
		return fmt.Errorf("leave to join %q: an id and the hash of a secret are needed", p.Join)
	case p.Host != "" && !ValidHost(p.Host):
		return fmt.Errorf("host id %q: want %s", p.Host, hostShape)
	case s.joins.get(p.Hash) != nil:
		return fmt.Errorf("leave to join with that secret: %w", ErrExists)
	}
	// Who allows it has read a clock that is right now, which cannot be said of the log's times: what was allowed a moment
	// ago must not go because those are years ahead. When there is no room, it goes.
	over := j.ExpiresAt.Add(-MaxJoinLife)
	if len(s.joins.rows) >= maxJoins && e.At.After(over) {
		over = e.At
	}
	for _, other := range s.joins.sorted() {
		if !over.Before(other.ExpiresAt) {
			s.joins.put(other.Hash, nil)
		} else if other.ID == p.Join {
			return fmt.Errorf("leave to join %s: %w", p.Join, ErrExists)
		}
	}
	if len(s.joins.rows) >= maxJoins {
		return fmt.Errorf("there are %d join tokens that were not used, which is the most: wait until some expire", len(s.joins.rows))
	}
	s.joins.put(p.Hash, j)
	return nil
}

// Whether leave has expired says the clock of the server that is asked. The times of the log say nothing of that: the
// clock may have been years ahead before.
func (p *HostAdmitted) fold(s *State, e Event) error {
	var join *Join
	for _, j := range s.joins.rows {
		if j.ID == p.Join {
			join = j
		}
	}
	switch {
	case join == nil:
		return fmt.Errorf("leave to join %q: %w", p.Join, ErrNotFound)
	case !ValidHost(p.Host) || p.Admission == "" || !hashShape.MatchString(p.Key):
		return fmt.Errorf("host id %q: want %s, an admission and the hash of a key", p.Host, hostShape)
	case join.Host != "" && join.Host != p.Host:
		return fmt.Errorf("leave to join %s is for host %s, not %s: %w", join.ID, join.Host, p.Host, ErrNotFound)
	case join.Host == "" && (s.hosts.get(p.Host) != nil || s.admissions.get(p.Host) != nil):
		return fmt.Errorf("host %s: %w", p.Host, ErrExists)
	}
	s.joins.put(join.Hash, nil)
	s.admissions.put(p.Host, &Admission{Host: p.Host, ID: p.Admission, Join: join.Hash, Key: p.Key, At: e.At})
	return nil
}

func (p *HostRevoked) fold(s *State, _ Event) error {
	if s.admissions.get(p.Host) == nil {
		return fmt.Errorf("admission of host %q: %w", p.Host, ErrNotFound)
	}
	s.admissions.put(p.Host, nil)
	return nil
}
