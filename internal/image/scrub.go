package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// ScrubOptions say how a store is read again in the background.
type ScrubOptions struct {
	Rate   int64         // bytes a second
	Period time.Duration // from the beginning of a pass to that of the next

	// Found is told of damage that is in quarantine by then. It may pull the images again; the scrub waits for it.
	Found func(context.Context, Damage)
	// Ended is told when a pass has ended.
	Ended func(ScrubState)
}

// A ScrubState is how far the scrub is. It is kept in the store.
type ScrubState struct {
	Began   time.Time `json:"began_at"`
	Ended   time.Time `json:"ended_at,omitzero"` // of this pass; zero while it goes on
	After   string    `json:"after,omitempty"`   // the file that was read last
	Files   int       `json:"files"`
	Bytes   int64     `json:"bytes"`
	Damaged int       `json:"damaged"`
}

// scrubSave is how often the state is kept within a pass.
const scrubSave = 10 * time.Second

// Scrub reads everything in the store again, slowly, pass after pass, until ctx is done. A pass that was
// interrupted, by the end of the process too, goes on where it was. What is damaged goes to quarantine, as in
// Verify. One process scrubs a store; more than one would only read more.
func (s *Store) Scrub(ctx context.Context, opts ScrubOptions) error {
	state := s.ScrubState()
	for {
		if !state.Ended.IsZero() {
			if err := sleep(ctx, time.Until(state.Began.Add(opts.Period))); err != nil {
				return nil
			}
		}
		if state.Began.IsZero() || !state.Ended.IsZero() {
			state = ScrubState{Began: time.Now().UTC()}
		}
		if err := s.scrubPass(ctx, opts, &state); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("scrub image store: %w", err)
		}
		if opts.Ended != nil {
			opts.Ended(state)
		}
	}
}

// ScrubState says how far the scrub is. When that is not known, it begins anew.
func (s *Store) ScrubState() ScrubState {
	var state ScrubState
	b, err := readFile(s.scrubPath(), 64<<10)
	if err != nil || b == nil || json.Unmarshal(b, &state) != nil {
		return ScrubState{}
	}
	return state
}

func (s *Store) scrubPath() string { return filepath.Join(s.dir, "scrub.json") }

func (s *Store) keepScrubState(state *ScrubState) error {
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	return durable.WriteFile(s.scrubPath(), append(b, '\n'), filePerm)
}

// scrubPass reads the files after state.After. It lists them anew for each, since much time passes.
func (s *Store) scrubPass(ctx context.Context, opts ScrubOptions, state *ScrubState) error {
	saved := time.Now()
	for {
		v, err := s.newVerifier(VerifyOptions{Rate: opts.Rate})
		if err != nil {
			return err
		}
		names, err := v.choose(nil)
		if err != nil {
			return err
		}
		v.total = v.inv.bytes()
		// As many files as are read within a moment share one listing.
		for _, name := range names {
			if name <= state.After {
				continue
			}
			if time.Since(v.pace.start) > scrubSave {
				break
			}
			err := v.file(ctx, name)
			if ctx.Err() != nil {
				// The next process goes on here.
				return errors.Join(context.Cause(ctx), s.keepScrubState(state))
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			state.After = name
		}
		state.Files += v.report.Files
		state.Bytes += v.report.Bytes
		state.Damaged += len(v.report.Damaged)
		done := len(names) == 0 || state.After >= names[len(names)-1]
		if done {
			state.Ended = time.Now().UTC()
		}
		if done || time.Since(saved) > scrubSave || len(v.report.Damaged) > 0 {
			if err := s.keepScrubState(state); err != nil {
				return err
			}
			saved = time.Now()
		}
		for _, d := range v.report.Damaged {
			if opts.Found != nil {
				opts.Found(ctx, d)
			}
		}
		if done {
			return nil
		}
	}
}

// sleep waits, and gives the cause when ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
