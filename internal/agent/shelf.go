package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/volume"
)

// shelf is what the agent knows of its host's volumes beside those that are in use.
type shelf struct {
	wake chan struct{} // has room for one: something is to be removed

	mu       sync.Mutex
	unwanted []string                  // guarded by mu; the server wants them removed
	listed   []*pinnacev1.VolumeReport // guarded by mu; what reports say
	at       time.Time                 // guarded by mu; when that was so
}

func newShelf() *shelf { return &shelf{wake: make(chan struct{}, 1)} }

// want takes over which volumes are to be removed.
func (s *shelf) want(removed []string) {
	s.mu.Lock()
	s.unwanted = slices.Clone(removed)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// toRemove are the volumes that are to be removed.
func (s *shelf) toRemove() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unwanted
}

// stale has the next report look at the volumes again.
func (s *shelf) stale() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = time.Time{}
}

// volumesLoop removes the volumes that the server wants removed. One that is still in use is tried again.
func (a *Agent) volumesLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.shelf.wake:
		case <-time.After(a.timing.volumes):
		}
		a.removeVolumes()
	}
}

func (a *Agent) removeVolumes() {
	for _, id := range a.shelf.toRemove() {
		switch err := a.volumes.Remove(id); {
		case err == nil:
			a.Log.Info("removed a volume", "volume", id)
			a.shelf.stale()
			a.changed()
		case errors.Is(err, volume.ErrNotFound):
		default:
			a.Log.Warn("a volume cannot be removed yet", "volume", id, "err", err)
		}
	}
}

// volumeReports is what there is to say of the host's volumes. listed is false when that is not known.
func (a *Agent) volumeReports() (all []*pinnacev1.VolumeReport, listed bool) {
	a.shelf.mu.Lock()
	defer a.shelf.mu.Unlock()
	if now := time.Now(); now.Sub(a.shelf.at) >= a.timing.volumes {
		volumes, err := a.volumes.List()
		if err != nil {
			a.Log.Warn("look at the volumes", "err", err)
			return nil, false
		}
		a.shelf.listed, a.shelf.at = make([]*pinnacev1.VolumeReport, len(volumes)), now
		for i, v := range volumes {
			a.shelf.listed[i] = volumeReport(v)
			a.shelf.listed[i].Unclaimed = !v.Unclaimed.IsZero() && now.Sub(v.Unclaimed) >= unclaimedFor
		}
	}
	return a.shelf.listed, true
}

// unclaimedFor is how long a volume that was imported waits for its first instance before the server hears that it has had
// none, and removes it when its log knows nothing of it. That log may be one that was restored, to before the import.
const unclaimedFor = 7 * 24 * time.Hour

func volumeReport(v volume.Info) *pinnacev1.VolumeReport {
	r := &pinnacev1.VolumeReport{Id: v.ID, SizeBytes: v.Size, AllocatedBytes: v.Allocated, UsedBytes: v.Used}
	for _, s := range v.Snapshots {
		if !strings.HasPrefix(s.Name, exportPrefix) {
			r.Snapshots = append(r.Snapshots, s.Name)
		}
	}
	return r
}
