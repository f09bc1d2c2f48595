package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// freezeLimit is how long the writers of a volume wait at most while it is copied.
const freezeLimit = time.Minute

// SnapshotVolume copies a volume of this host under a name of its own. When an instance uses it, its guest lets nothing
// be written meanwhile; a copy that takes longer than a workload may wait for is not kept.
func (a *Agent) SnapshotVolume(ctx context.Context, id, name string) error {
	host, volume := a.userOf(id)
	if host == nil {
		return a.volumes.Snapshot(ctx, id, name)
	}
	if volume == "" { // nothing is written to it
		return a.volumes.SnapshotFrozen(ctx, id, name)
	}
	if err := host.Freeze(ctx, volume, freezeLimit); err != nil {
		return fmt.Errorf("make snapshot %s of volume %s: %w", name, id, err)
	}
	copying, cancel := context.WithTimeout(ctx, freezeLimit)
	err := a.volumes.SnapshotFrozen(copying, id, name)
	tooLong := copying.Err() != nil && ctx.Err() == nil
	cancel()
	// Whatever became of the copy, the workload goes on.
	thawing, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.timing.call)
	defer cancel()
	whole, thawErr := host.Thaw(thawing, volume)
	switch {
	case err != nil && !tooLong:
		return err
	case err == nil && thawErr == nil && whole:
		return nil
	case err == nil:
		// The guest may have written while it was copied.
		err = a.volumes.RemoveSnapshot(id, name)
	}
	if thawErr == nil {
		thawErr = fmt.Errorf("to copy it took longer than the %s for which its workload may wait; stop the instance first, "+
			"or keep volumes on a file system that shares blocks, such as XFS or Btrfs", freezeLimit)
	}
	return errors.Join(fmt.Errorf("make snapshot %s of volume %s: %w", name, id, thawErr), err)
}

// userOf is the guest that has a volume of the host, and the name by which it can freeze it: none when it is read-only
// there. Both are zero when no workload that runs has it.
func (a *Agent) userOf(id string) (*guest.Host, string) {
	a.mu.Lock()
	all := slices.Collect(maps.Values(a.instances))
	a.mu.Unlock()
	for _, inst := range all {
		host, _, err := a.talkTo(inst.id)
		if err != nil {
			continue
		}
		for _, v := range inst.assignment.GetVolumes() {
			switch of, ok := inst.workload.manifest.Volumes[v.Name]; {
			case v.Id != id || !ok:
			case of.ReadOnly:
				return host, ""
			default:
				return host, v.Name
			}
		}
	}
	return nil, ""
}
