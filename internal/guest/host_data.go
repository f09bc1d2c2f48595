package guest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// unable says what of a configuration the guest's init is too old for. It would leave it out without a word.
func unable(hello Hello, c Config) error {
	for ability, wanted := range map[string]bool{CanVolumes: len(c.Volumes) > 0, CanSecrets: len(c.Secrets) > 0} {
		if wanted && !slices.Contains(hello.Can, ability) {
			return fmt.Errorf("the microVM was started by an earlier version, whose init (%s) cannot do %s; the next attempt of the instance can", hello.Init, ability)
		}
	}
	return nil
}

// ErrBundleRefused is wrapped by Update's error when the guest has kept the version that was there.
var ErrBundleRefused = errors.New("the guest keeps the version that it has")

// Update puts another version of a bundle in the place of the one that the workload was started with, and returns when
// the guest has done it: the files are the new ones, and the signal was sent. It may be called again with the same
// version, also by another session: then nothing happens. Two versions of one bundle must not be under way at once.
func (h *Host) Update(ctx context.Context, b Bundle) error {
	answer := make(chan Bundled, 1)
	key := bundleKey{b.Name, b.Version}
	h.mu.Lock()
	h.bundles[key] = answer
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.bundles, key)
		h.mu.Unlock()
	}()
	if err := h.send(b); err != nil {
		return fmt.Errorf("update secrets %s: %w", b.Name, err)
	}
	select {
	case r := <-answer:
		if r.Error != "" {
			return fmt.Errorf("update secrets %s to version %d: %w: %s", b.Name, b.Version, ErrBundleRefused, r.Error)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("update secrets %s: %w", b.Name, context.Cause(ctx))
	case <-h.done:
		return fmt.Errorf("update secrets %s: %w", b.Name, h.closedErr())
	}
}

// bundleKey names what an Update waits for.
type bundleKey struct {
	name    string
	version uint64
}

// Freeze has the guest write out a volume, by its name in the Config, and let whoever writes to it wait, for at most
// limit. When it returns nil, what the host's file has is what the file system is: until Thaw, or until limit is over,
// which Thaw tells.
func (h *Host) Freeze(ctx context.Context, volume string, limit time.Duration) error {
	_, err := h.freeze(ctx, Freeze{Volume: volume, ForMS: max(limit.Milliseconds(), 1)})
	return err
}

// Thaw ends a Freeze. whole tells whether it had lasted until now.
func (h *Host) Thaw(ctx context.Context, volume string) (whole bool, err error) {
	answer, err := h.freeze(ctx, Freeze{Volume: volume})
	return answer.Whole, err
}

func (h *Host) freeze(ctx context.Context, m Freeze) (Frozen, error) {
	answer := make(chan Frozen, 1)
	h.mu.Lock()
	h.nextExec++ // the numbers are for both
	m.ID = h.nextExec
	h.freezes[m.ID] = answer
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.freezes, m.ID)
		h.mu.Unlock()
	}()
	what := "freeze volume " + m.Volume
	if m.ForMS == 0 {
		what = "thaw volume " + m.Volume
	}
	if err := h.send(m); err != nil {
		return Frozen{}, fmt.Errorf("%s: %w", what, err)
	}
	select {
	case r := <-answer:
		if r.Error != "" {
			return Frozen{}, fmt.Errorf("%s: the guest says: %s", what, r.Error)
		}
		return r, nil
	case <-ctx.Done():
		return Frozen{}, fmt.Errorf("%s: %w", what, context.Cause(ctx))
	case <-h.done:
		return Frozen{}, fmt.Errorf("%s: %w", what, h.closedErr())
	}
}
