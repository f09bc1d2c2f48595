// Package server is the control plane: it takes what people and agents say, decides, and writes the
// decisions into the event log.
//
// One loop (Run) reads the state, which is the fold of the log, and the latest reports of the agents, asks
// package rollout for the next step and package scheduler for places, and appends the outcome. Everything
// that it knows beside the log can be lost: a server that was killed folds the log, waits for the agents to
// report again, and goes on where it was.
//
// The server never contacts a registry or a host. The CLI resolves images, the agents pull and ask for work.
// It does not listen either: whoever starts it serves Handler and AgentHandler.
package server

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/identity"
	"github.com/pinnacehq/pinnace/internal/identity/lastuse"
	"github.com/pinnacehq/pinnace/internal/secret"
)

// Options of a Server. Engine, Logger, AdminToken and Authority are needed.
type Options struct {
	// Engine stores the event log; the server owns it from New on, and closes it also when New fails.
	Engine eventlog.Engine
	// Follow lets the server answer questions while another one leads, and lead once that is gone. Without it,
	// New fails while there is another one.
	Follow bool
	// LogKey signs checkpoints of the log; none are made without it. DerivedDir is where a copy of the state is
	// kept that makes a start fast; none when empty.
	LogKey     ed25519.PrivateKey
	DerivedDir string
	Logger     *slog.Logger
	// AdminToken is the first token of a log that has none, for everything.
	AdminToken string
	// Authority signs the certificates of hosts.
	Authority *identity.Authority
	// APIPin may be the fingerprint of the authority of the certificate that the API is served with; tokens carry it.
	APIPin identity.Fingerprint
	// Keys seal what nobody may read, and Secrets keeps it; the server owns the store from New on, as it does the engine.
	// Without both there can be no secrets and no logins at registries.
	Keys    *secret.Keys
	Secrets secret.Store
	// TokenUses may keep when tokens were used last; the server owns it from New on. Without it they are forgotten at its end.
	TokenUses lastuse.Store
	// Version is what the server says it is.
	Version string
	// HostTimeout is how long a host counts as connected after its last report; 10 s when 0, which is five heartbeats.
	HostTimeout time.Duration
	// LostAfter is for how long a host may be away, once it counts as that, before its instances are started elsewhere;
	// 5 s when 0. With the default of HostTimeout a successor has half of the 30 s within which it is to serve.
	LostAfter time.Duration
	// StaleAfter is for how long a server that follows lets people and hosts in without hearing of the one that leads; 30 s
	// when 0. With what a call may still last, whoever is put out is out everywhere within a minute.
	StaleAfter time.Duration
	// Now is the clock and Random the source of ids; time.Now and crypto/rand when nil.
	Now    func() time.Time
	Random io.Reader
}

// Server is one control plane. Its handlers may be called by many goroutines.
type Server struct {
	opts      Options
	log       *slog.Logger
	now       func() time.Time
	startedAt time.Time

	ledger   *ledger
	observed *observed
	journals *journals
	logs     *broker[*logWant]
	execs    *broker[*execTask]
	tasks    *broker[*hostTask]
	tokenUse *tokenUses
	imports  imports
	// rotations are changes of secrets in place.
	rotations rotations
	bound     *boundKeys
	// changed fires after every commit, and after reports that say something new.
	changed *signal
	// putting is held while a secret or a login is made.
	putting sync.Mutex
	// placing is held from asking for a place until what takes it is in the log: two could get the same room otherwise.
	placing sync.Mutex
	// asked fires when somebody wants the logs of an instance, or to run a command there.
	asked *signal
	views views
	feeds *feeds
	// wake asks the loop to look again.
	wake chan struct{}

	loop  loopState // owned by Run
	waits waits
}

// New opens the log, folds it and returns a server that answers, and decides once Run is called.
func New(ctx context.Context, opts Options) (*Server, error) {
	if err := opts.complete(); err != nil {
		return nil, errors.Join(err, closeEngine(opts.Engine), opts.closeStores())
	}
	s := &Server{
		opts: opts, log: opts.Logger, now: opts.Now, startedAt: opts.Now(),
		observed: newObserved(opts.HostTimeout), journals: newJournals(), logs: newBroker[*logWant](maxLogWants), execs: newBroker[*execTask](maxExecs), tasks: newBroker[*hostTask](maxTasks), tokenUse: newTokenUses(), bound: newBoundKeys(),
		changed: newSignal(), asked: newSignal(), wake: make(chan struct{}, 1), loop: newLoopState(),
	}
	s.feeds = newFeeds(s)
	l, err := openLedger(ctx, opts, s.journals, s.committed)
	if err != nil {
		return nil, errors.Join(err, opts.closeStores())
	}
	s.ledger = l
	if s.leads() {
		if err := s.ensureFirstToken(ctx); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func (o *Options) complete() error {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.HostTimeout <= 0 {
		o.HostTimeout = 10 * time.Second
	}
	if o.LostAfter <= 0 {
		o.LostAfter = 5 * time.Second
	}
	if o.StaleAfter <= 0 {
		o.StaleAfter = 30 * time.Second
	}
	switch {
	case o.Engine == nil || o.Logger == nil:
		return errors.New("start server: an engine and a logger are needed")
	case o.AdminToken == "" || o.Authority == nil:
		return errors.New("start server: without an admin token and an authority for hosts nobody could be let in")
	}
	return nil
}

func closeEngine(e eventlog.Engine) error {
	if e == nil {
		return nil
	}
	return e.Close()
}

func (o *Options) closeStores() (err error) {
	if o.Secrets != nil {
		err = o.Secrets.Close()
	}
	if o.TokenUses != nil {
		err = errors.Join(err, o.TokenUses.Close())
	}
	return err
}

// Close closes the log and what is stored beside it. Run and all handlers must have returned.
func (s *Server) Close() error {
	s.feeds.dirt.close()
	return errors.Join(s.ledger.log.Close(), s.opts.closeStores())
}

// committed follows every event that is durable, in order. It is called by the log's writer.
func (s *Server) committed(entries []entry) {
	for _, e := range entries {
		s.narrate(e)
	}
	s.feeds.touched(entries)
	s.notice()
}

// notice wakes everything that looks at state or reports.
func (s *Server) notice() {
	s.changed.fire()
	s.poke()
}

// poke wakes the loop.
func (s *Server) poke() {
	select {
	case s.wake <- struct{}{}:
	default: // it is awake already, or about to be
	}
}

// newID draws an id of prefix, a dash and 12 hexadecimal digits.
func (s *Server) newID(prefix string) (string, error) {
	var b [6]byte
	if _, err := io.ReadFull(s.opts.Random, b[:]); err != nil {
		return "", fmt.Errorf("draw an id: %w", err)
	}
	return idOf(prefix, b[:]), nil
}

// idOf makes an id of what was drawn for it.
func idOf(prefix string, b []byte) string { return fmt.Sprintf("%s-%x", prefix, b[:6]) }
