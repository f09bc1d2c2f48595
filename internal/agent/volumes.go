package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/volume"
)

func (o *Options) volumesDir() string {
	return firstOf(o.VolumesDir, filepath.Join(o.Dir, "volumes"))
}

// checkVolumes makes sure that an assignment says which volume of the host each of the manifest's is.
func checkVolumes(m *manifest.Manifest, asg *pinnacev1.Assignment) error {
	ids := map[string]string{}
	for _, v := range asg.Volumes {
		if err := volume.CheckID(v.Id); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
		if other, taken := ids[v.Id]; taken {
			return fmt.Errorf("volumes %s and %s are both %s of the host", other, v.Name, v.Id)
		}
		ids[v.Id] = v.Name
	}
	for name := range m.Volumes {
		if volumeID(asg, name) == "" {
			return fmt.Errorf("the server has not said which volume of this host %s is", name)
		}
	}
	return nil
}

func volumeID(asg *pinnacev1.Assignment, name string) string {
	return assignedVolume(asg, name).GetId()
}

// assignedVolume is what an assignment says of a volume of the manifest; nil for nothing.
func assignedVolume(asg *pinnacev1.Assignment, name string) *pinnacev1.AssignedVolume {
	for _, v := range asg.GetVolumes() {
		if v.GetName() == name {
			return v
		}
	}
	return nil
}

// volumeNames are the volumes of the workload in the order of their disks.
func (t *attempt) volumeNames() []string {
	return slices.Sorted(maps.Keys(t.workload.manifest.Volumes))
}

func volumeSerial(n int) string { return fmt.Sprintf("volume%d", n) }

// takeVolumes holds every volume of the workload, after it has made, grown and checked what it had to. It returns what
// it did, for people.
func (t *attempt) takeVolumes(ctx context.Context) (string, error) {
	var details []string
	for _, name := range t.volumeNames() {
		hold, detail, err := t.takeVolume(ctx, name)
		if err != nil {
			return "", err
		}
		t.holds = append(t.holds, hold)
		details = append(details, detail)
	}
	return strings.Join(details, ", "), nil
}

func (t *attempt) takeVolume(ctx context.Context, name string) (_ *volume.Hold, detail string, err error) {
	v := t.workload.manifest.Volumes[name]
	// What it is to be may have changed since the instance was placed.
	asg := assignedVolume(t.assigned(), name)
	id, want := asg.GetId(), max(v.SizeBytes, asg.GetSizeBytes())
	who := fmt.Sprintf("attempt %d of %s", t.number, t.id)
	store := t.agent.volumes
	hold, err := store.Hold(id, who)
	detail = "volume " + name + " " + mib(want)
	if errors.Is(err, volume.ErrNotFound) {
		if asg.GetMustExist() {
			return nil, "", fmt.Errorf("volume %s was %s on this host, and is missing: it is not replaced by an empty one. Put it back, or detach it (pinnace volumes detach %s) to begin anew", name, id, id)
		}
		if v.OnMissing == manifest.OnMissingFail {
			return nil, "", fmt.Errorf("volume %s is to be %s on this host, where it is missing, and on_missing = \"fail\"", name, id)
		}
		if err := store.Create(ctx, id, want); err != nil && !errors.Is(err, volume.ErrExists) {
			return nil, "", err
		}
		t.agent.shelf.stale()
		detail += " (new)"
		hold, err = store.Hold(id, who)
	}
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			hold.Close()
		}
	}()
	if err := hold.Claim(); err != nil {
		return nil, "", err
	}
	size, err := hold.Size()
	if err != nil {
		return nil, "", err
	}
	switch {
	case size < want:
		if err := hold.Grow(want); err != nil {
			return nil, "", err
		}
		detail += fmt.Sprintf(" (grown from %s)", mib(size))
	case size > want:
		// It was grown for a release that came later, or by hand. A rollback must not fail for that.
		detail += fmt.Sprintf(" (%s already)", mib(size))
	}
	done, err := hold.Check(ctx, t.uid, t.uid)
	if err != nil {
		return nil, "", err
	}
	if done != "" {
		t.log.Warn("a volume was repaired", "volume", id, "how", done)
		detail += " (repaired)"
	}
	return hold, detail, nil
}

// letGoOfVolumes gives up this process's part in the holds. A machine that runs has its own.
func (t *attempt) letGoOfVolumes() {
	for _, hold := range t.holds {
		hold.Close()
	}
	t.holds = nil
}

// attachVolumes adds the volumes to a machine: behind all other disks, whose order some drivers promise.
func (t *attempt) attachVolumes(spec *vm.Spec) {
	for i, hold := range t.holds {
		spec.Disks = append(spec.Disks, vm.Disk{ID: volumeSerial(i), Path: hold.Path(), Durable: true})
		spec.Kept = append(spec.Kept, hold.Lock())
	}
}

// mountVolumes adds the volumes to a guest's configuration, as attachVolumes has attached them. An attempt that was
// taken over holds none itself, so that this goes by the manifest.
func (t *attempt) mountVolumes(c *guest.Config) {
	for i, name := range t.volumeNames() {
		v := t.workload.manifest.Volumes[name]
		c.Volumes = append(c.Volumes, guest.Volume{Name: name, Disk: len(c.Disks), Path: v.Path, ReadOnly: v.ReadOnly})
		c.Disks = append(c.Disks, guest.Disk{Role: guest.RoleVolume, Serial: volumeSerial(i), Order: len(c.Disks)})
	}
}

// otherDisks are those of a machine that are neither layers nor volumes: metadata, pack and scratch.
const otherDisks = 3

// imageDisks are the disks of the attempt's image: as many layers as drives of their own as the driver has room for
// beside the volumes.
func (t *attempt) imageDisks(ctx context.Context) (image.DiskSet, error) {
	can, err := t.agent.Driver.Probe(ctx)
	if err != nil {
		return image.DiskSet{}, err
	}
	room := can.MaxDisks - otherDisks - len(t.workload.manifest.Volumes)
	if room < 0 {
		return image.DiskSet{}, fmt.Errorf("%d volumes are more than %s has room for, which takes %d disks", len(t.workload.manifest.Volumes), can.Driver, can.MaxDisks)
	}
	return t.agent.Images.Disks(t.image, min(room, image.LayerDrives))
}
