package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/secret"
)

// sealedText is what is sealed in one piece. It says what it is, so that nothing can be taken for something else.
type sealedText struct {
	Kind        string            `json:"kind"`
	Environment string            `json:"environment"`
	Name        string            `json:"name"`
	Version     uint64            `json:"version,omitempty"`
	Values      map[string][]byte `json:"values"`
}

// The kinds.
const (
	sealedBundle = "secret bundle"
	sealedLogin  = "registry login"
	// loginPassword is the only key of a login's values.
	loginPassword = "password"
)

// errNoStore means that the server was started without a place for secrets.
var errNoStore = errors.New("this server keeps no secrets: it was started without a key to seal them with, or without a place for them")

// seal stores what is sealed and returns its name, which no event has yet.
func (s *Server) seal(ctx context.Context, what sealedText) (digest string, err error) {
	if s.opts.Keys == nil || s.opts.Secrets == nil {
		return "", connect.NewError(connect.CodeFailedPrecondition, errNoStore)
	}
	if err := s.checkKeys(); err != nil {
		return "", err
	}
	plain, err := json.Marshal(what)
	if err != nil {
		return "", errors.New("seal: values cannot be encoded") // its text could have some of them
	}
	sealed, err := s.opts.Keys.Seal(plain)
	if err != nil {
		return "", err
	}
	if digest, err = s.opts.Secrets.Put(ctx, sealed); err != nil {
		return "", fmt.Errorf("store what was sealed: %w", err)
	}
	sealedStored.Hit()
	return digest, nil
}

// unseal returns the values of what was sealed, when it is what it is asked for as.
func (s *Server) unseal(ctx context.Context, digest string, want sealedText) (map[string][]byte, error) {
	if s.opts.Keys == nil || s.opts.Secrets == nil {
		return nil, errNoStore
	}
	sealed, err := s.opts.Secrets.Get(ctx, digest)
	if err != nil {
		return nil, err
	}
	plain, err := s.opts.Keys.Open(sealed)
	if err != nil {
		return nil, err
	}
	var got sealedText
	if err := json.Unmarshal(plain, &got); err != nil {
		return nil, errors.New("what was sealed makes no sense") // its text could have values in it
	}
	if got.Kind != want.Kind || got.Environment != want.Environment || got.Name != want.Name || got.Version != want.Version {
		return nil, fmt.Errorf("what was sealed is not the %s %s that it is said to be", want.Kind, want.Name)
	}
	return got.Values, nil
}

// unsealBundle returns the values of a version of a bundle.
func (s *Server) unsealBundle(ctx context.Context, b *fleet.Bundle, v *fleet.BundleVersion) (map[string][]byte, error) {
	values, err := s.unseal(ctx, v.Sealed, sealedText{Kind: sealedBundle, Environment: b.Environment, Name: b.Name, Version: v.Version})
	if err != nil {
		return nil, fmt.Errorf("version %d of secret bundle %s of %s: %w", v.Version, b.Name, b.Environment, err)
	}
	return values, nil
}

// checkKeys refuses to seal more for a key that is not the one that the rest was sealed for: of two servers with two keys,
// each would lack half of the secrets.
func (s *Server) checkKeys() (err error) {
	s.ledger.read(func(st *fleet.State) {
		for _, recipient := range foreign(st, s.opts.Keys) {
			err = refuse(connect.CodeFailedPrecondition, "secrets were sealed for another key (%s) than this server has (%s): give it that key too, or revoke what was sealed for it",
				cut(recipient), s.opts.Keys.Recipient())
		}
	})
	return err
}

// foreign are the recipients of what is kept and none of the keys opens.
func foreign(st *fleet.State, keys *secret.Keys) []string {
	var found []string
	see := func(recipient string) {
		if !keys.Hold(recipient) {
			found = append(found, recipient)
		}
	}
	for _, b := range st.Bundles("") {
		for _, v := range b.Versions {
			if v.RevokedAt.IsZero() {
				see(v.Recipient)
			}
		}
	}
	for _, l := range st.Logins("") {
		see(l.Recipient)
	}
	for _, i := range st.Runs("", "") {
		see(i.Run.Recipient)
	}
	return found
}

// orphanAge is for how long sealed bytes are kept that no event names: for an hour they may be on their way into one, and
// for the rest of the time somebody may have restored an older log by mistake.
const orphanAge = 30 * 24 * time.Hour

// tidySealed removes what was revoked, should the server have ended before it could, and what no event ever named.
func (s *Server) tidySealed(ctx context.Context) {
	if s.opts.Secrets == nil {
		return
	}
	kept, gone := map[string]bool{}, map[string]bool{}
	var strange []string
	s.ledger.read(func(st *fleet.State) {
		for _, b := range st.Bundles("") {
			for _, v := range b.Versions {
				if v.RevokedAt.IsZero() {
					kept[v.Sealed] = true
				} else {
					gone[v.Sealed] = true
				}
			}
		}
		for _, l := range st.Logins("") {
			kept[l.Sealed] = true
		}
		for _, i := range st.Runs("", "") {
			kept[i.Run.Sealed] = true
		}
		for _, app := range st.Apps("") {
			for _, i := range st.EndedRuns(app.Environment, app.Name) {
				gone[i.Run.Sealed] = true
			}
		}
		if s.opts.Keys != nil {
			strange = foreign(st, s.opts.Keys)
		}
	})
	if len(strange) > 0 {
		s.log.ErrorContext(ctx, "secrets were sealed for another key than this server has; what needs them cannot be started", "count", len(strange), "sealed_for", strange[0])
	}
	all, err := s.opts.Secrets.List(ctx)
	if err != nil {
		s.log.WarnContext(ctx, "look at the store of secrets", "error", err)
		return
	}
	stored := map[string]bool{}
	for _, e := range all {
		stored[e.Digest] = true
		if kept[e.Digest] || !gone[e.Digest] && s.now().Sub(e.At) < orphanAge {
			continue
		}
		s.removeSealed(ctx, e.Digest)
	}
	lost := 0
	for digest := range kept {
		if !stored[digest] {
			lost++
		}
	}
	if lost > 0 {
		s.log.ErrorContext(ctx, "secrets are not in their store; what needs them cannot be started: put them again, or restore the store", "count", lost)
	}
}

// removeSealed removes what nothing needs any more. When that fails the next start of the server does it.
func (s *Server) removeSealed(ctx context.Context, digests ...string) {
	for _, digest := range digests {
		if err := s.opts.Secrets.Remove(context.WithoutCancel(ctx), digest); err != nil {
			s.log.WarnContext(ctx, "remove what was sealed; it is tried again when the server starts", "error", err)
		}
	}
}
