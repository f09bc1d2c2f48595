package server

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/identity/lastuse"
)

const (
	// usesEvery is how often it is saved when tokens were used: at most one write in that time, whatever their number.
	usesEvery = time.Minute
	// usesTime is how long one save may take.
	usesTime = 5 * time.Second
)

// tokenUses remembers when tokens were used last: what this server has seen, and what it knows of its own earlier runs and
// of other servers.
type tokenUses struct {
	mu    sync.Mutex
	seen  map[string]time.Time // guarded by mu; by id, what was not saved yet
	known map[string]time.Time // guarded by mu; what the store has, when it was asked last
}

func newTokenUses() *tokenUses {
	return &tokenUses{seen: map[string]time.Time{}, known: map[string]time.Time{}}
}

func (u *tokenUses) used(id string, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.seen[id] = now
}

func (u *tokenUses) of(id string) time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	if seen := u.seen[id]; seen.After(u.known[id]) {
		return seen
	}
	return u.known[id]
}

// unsaved is what was not saved yet.
func (u *tokenUses) unsaved() map[string]time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.seen)
}

// saved takes over what was saved, and what the store has.
func (u *tokenUses) saved(done, known map[string]time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, at := range done {
		if u.seen[id].Equal(at) {
			delete(u.seen, id)
		}
	}
	lastuse.Merge(u.known, done)
	lastuse.Merge(u.known, known)
}

// saveUses saves what is new, and learns what other servers have saved.
func (s *Server) saveUses(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, usesTime)
	defer cancel()
	fresh := s.tokenUse.unsaved()
	if len(fresh) > 0 {
		if err := s.opts.TokenUses.Save(ctx, fresh); err != nil {
			return err
		}
	}
	known, err := s.opts.TokenUses.Load(ctx)
	s.tokenUse.saved(fresh, known)
	return err
}

// keepUses saves from time to time when tokens were used, until ctx is done, and then once more. A server that is killed
// forgets a minute at most.
func (s *Server) keepUses(ctx context.Context) {
	if s.opts.TokenUses == nil {
		return
	}
	failing := false
	save := func(ctx context.Context) {
		err := s.saveUses(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			s.log.WarnContext(ctx, "remember when tokens were used; it is tried again each minute", "error", err)
		}
		failing = err != nil
	}
	save(ctx)
	for {
		select {
		case <-ctx.Done():
			// The end of a server is no reason to forget.
			save(context.WithoutCancel(ctx))
			return
		case <-time.After(usesEvery):
			save(ctx)
		}
	}
}
