package fleet

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Bounds of volumes.
const (
	// MinVolume and MaxVolume are the smallest and the largest size of a volume in bytes, as in the manifest.
	MinVolume = 64 << 20
	MaxVolume = 16 << 40
	// MaxSnapshots is how many snapshots of a volume there can be.
	MaxSnapshots = 64
)

// volumeShape is that of names of files on hosts: ids of volumes and names of snapshots.
var volumeShape = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// ValidSnapshot reports whether name may name a snapshot.
func ValidSnapshot(name string) bool { return volumeShape.MatchString(name) }

// PlatformSnapshots begins the names of snapshots that the platform makes for itself, and removes again.
const PlatformSnapshots = "export-"

// PlatformSnapshot reports whether a name is one of those.
func PlatformSnapshot(name string) bool { return strings.HasPrefix(name, PlatformSnapshots) }

var digestShape = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Volume is a disk of an app that outlives its instances.
type Volume struct {
	ID string
	// Environment, App, Name and Ordinal are what it is for, or was for.
	Environment, App, Name string
	Ordinal                int
	Host                   string
	// SizeBytes is how large it is to be, from the next start of its instance on.
	SizeBytes int64
	BoundAt   time.Time
	// Made is true once the volume must be there: an instance has run with it, or it was imported.
	Made bool
	// Detached is since when it is no longer the app's, Deleted since when it is to be removed; zero before.
	DetachedAt, DeletedAt time.Time
	Snapshots             []Snapshot // by name
}

// Snapshot is a copy of a volume, on the same host.
type Snapshot struct {
	Name      string
	SizeBytes int64
	TakenAt   time.Time
}

// Attached reports whether the volume is the app's.
func (v *Volume) Attached() bool { return v.DetachedAt.IsZero() }

func mountKey(environment, app string, ordinal int, name string) string {
	return fmt.Sprintf("%s/%s/%d/%s", environment, app, ordinal, name)
}

func (v *Volume) mountKey() string { return mountKey(v.Environment, v.App, v.Ordinal, v.Name) }

// Volume returns the volume with the id, or nil.
func (s *State) Volume(id string) *Volume { return s.volumes.get(id) }

// VolumeOf returns the volume of an app for an ordinal, by its name in the manifest; nil when there is none yet.
func (s *State) VolumeOf(environment, app string, ordinal int, name string) *Volume {
	return s.mounts.get(mountKey(environment, app, ordinal, name))
}

// Volumes returns the volumes of an environment by app, ordinal, name and id, those that are detached included.
func (s *State) Volumes(environment string) []*Volume {
	var found []*Volume
	for _, v := range s.volumes.rows {
		if v.Environment == environment {
			found = append(found, v)
		}
	}
	slices.SortFunc(found, func(a, b *Volume) int {
		return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Ordinal, b.Ordinal), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return found
}

// VolumesByPrefix returns the volumes whose id begins with prefix, by id.
func (s *State) VolumesByPrefix(prefix string) []*Volume { return byPrefix(&s.volumes, prefix) }

// VolumesOn returns the volumes that are on a host, or are to be, by id.
func (s *State) VolumesOn(host string) []*Volume {
	b := s.Booking(host)
	if b == nil {
		return nil
	}
	found := make([]*Volume, len(b.Volumes))
	for i, id := range b.Volumes {
		found[i] = s.volumes.get(id)
	}
	return found
}

// HolderOf returns an instance that has, or is to have, a volume; nil when nothing runs with it.
func (s *State) HolderOf(v *Volume) *Instance {
	if !v.Attached() {
		return nil
	}
	for _, i := range s.Instances(v.Environment, v.App) {
		if i.Ordinal == v.Ordinal && !i.Task {
			if _, has := s.Release(i.Release).Manifest.Volumes[v.Name]; has {
				return i
			}
		}
	}
	return nil
}

// putVolume stores a volume in place of the one with its id.
func (s *State) putVolume(v *Volume) {
	s.volumes.put(v.ID, v)
	switch at := s.mounts.get(v.mountKey()); {
	case v.Attached():
		s.mounts.put(v.mountKey(), v)
	case at != nil && at.ID == v.ID:
		s.mounts.put(v.mountKey(), nil)
	}
}

// changeVolume stores a changed copy of a volume that is there.
func (s *State) changeVolume(id string, change func(*Volume)) {
	v := *s.volumes.get(id)
	change(&v)
	s.putVolume(&v)
}

// dropVolume forgets a volume.
func (s *State) dropVolume(v *Volume) {
	s.volumes.put(v.ID, nil)
	if at := s.mounts.get(v.mountKey()); at != nil && at.ID == v.ID {
		s.mounts.put(v.mountKey(), nil)
	}
	if s.bookings.get(v.Host) != nil {
		s.bookings.change(v.Host, func(b *Booking) { b.Volumes = without(b.Volumes, v.ID) })
	}
}

func (p *VolumeBound) fold(s *State, e Event) error {
	env := s.environments.get(p.Environment)
	switch {
	case env == nil:
		return fmt.Errorf("environment %s: %w", p.Environment, ErrNotFound)
	case !volumeShape.MatchString(p.Volume):
		return fmt.Errorf("volume id %q: want %s", p.Volume, volumeShape)
	case s.volumes.get(p.Volume) != nil:
		return fmt.Errorf("volume %s: %w", p.Volume, ErrExists)
	case !ValidName(p.App) || !ValidName(p.Name):
		return fmt.Errorf("volume %q of app %q: want names like %s", p.Name, p.App, nameShape)
	case p.Ordinal < 0 || p.Ordinal >= MaxCount:
		return fmt.Errorf("volume %s: ordinal %d", p.Volume, p.Ordinal)
	case p.SizeBytes < MinVolume || p.SizeBytes > MaxVolume:
		return fmt.Errorf("volume %s: %d bytes are not within %d and %d", p.Volume, p.SizeBytes, int64(MinVolume), int64(MaxVolume))
	case p.SHA256 != "" && !digestShape.MatchString(p.SHA256):
		return fmt.Errorf("volume %s: %q is not a sha256", p.Volume, p.SHA256)
	case s.hosts.get(p.Host) == nil:
		return fmt.Errorf("host %q: %w", p.Host, ErrNotFound)
	case !env.DestroyedAt.IsZero() || s.beingDestroyed(p.Environment, p.App):
		return &DestroyedError{Environment: p.Environment, App: p.App}
	}
	if at := s.VolumeOf(p.Environment, p.App, p.Ordinal, p.Name); at != nil {
		return fmt.Errorf("volume %s of %s/%d in %s is %s: %w", p.Name, p.App, p.Ordinal, p.Environment, at.ID, ErrExists)
	}
	s.putVolume(&Volume{
		ID: p.Volume, Environment: p.Environment, App: p.App, Name: p.Name, Ordinal: p.Ordinal, Host: p.Host, SizeBytes: p.SizeBytes,
		BoundAt: e.At, Made: p.SHA256 != "",
	})
	s.bookings.change(p.Host, func(b *Booking) { b.Volumes = with(b.Volumes, p.Volume) })
	return nil
}

// known finds a volume that is not to be removed.
func (s *State) known(id string) (*Volume, error) {
	v := s.volumes.get(id)
	switch {
	case v == nil:
		return nil, fmt.Errorf("volume %q: %w", id, ErrNotFound)
	case !v.DeletedAt.IsZero():
		return nil, fmt.Errorf("volume %s is being removed: %w", id, ErrNotFound)
	}
	return v, nil
}

func (p *VolumeGrown) fold(s *State, _ Event) error {
	v, err := s.known(p.Volume)
	if err != nil {
		return err
	}
	if p.SizeBytes <= v.SizeBytes || p.SizeBytes > MaxVolume {
		return fmt.Errorf("volume %s of %d bytes cannot become one of %d: volumes only grow, to %d at most", v.ID, v.SizeBytes, p.SizeBytes, int64(MaxVolume))
	}
	s.changeVolume(v.ID, func(v *Volume) { v.SizeBytes = p.SizeBytes })
	return nil
}

// HeldError means that an instance has a volume, or is to have it.
type HeldError struct {
	Volume *Volume
	By     *Instance
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("volume %s is %s of instance %s", e.Volume.ID, e.Volume.Name, e.By.ID)
}

func (p *VolumeDetached) fold(s *State, e Event) error {
	v, err := s.known(p.Volume)
	if err != nil {
		return err
	}
	if !v.Attached() {
		return fmt.Errorf("volume %s is detached: %w", v.ID, ErrExists)
	}
	if by := s.HolderOf(v); by != nil {
		return &HeldError{Volume: v, By: by}
	}
	s.changeVolume(v.ID, func(v *Volume) { v.DetachedAt = e.At })
	return nil
}

func (p *VolumeDeleted) fold(s *State, e Event) error {
	v, err := s.known(p.Volume)
	if err != nil {
		return err
	}
	if v.Attached() {
		return fmt.Errorf("volume %s is %s of %s/%d; only one that is detached can be deleted", v.ID, v.Name, v.App, v.Ordinal)
	}
	s.changeVolume(v.ID, func(v *Volume) { v.DeletedAt = e.At })
	return nil
}

func (p *VolumeRemoved) fold(s *State, _ Event) error {
	v := s.volumes.get(p.Volume)
	if v == nil || v.DeletedAt.IsZero() {
		return fmt.Errorf("volume %q that was deleted: %w", p.Volume, ErrNotFound)
	}
	s.dropVolume(v)
	return nil
}

func (p *SnapshotTaken) fold(s *State, e Event) error {
	v, err := s.known(p.Volume)
	if err != nil {
		return err
	}
	at, found := slices.BinarySearchFunc(v.Snapshots, p.Snapshot, func(s Snapshot, name string) int { return cmp.Compare(s.Name, name) })
	switch {
	case !ValidSnapshot(p.Snapshot):
		return fmt.Errorf("snapshot %q: want %s", p.Snapshot, volumeShape)
	case found:
		return fmt.Errorf("snapshot %s of volume %s: %w", p.Snapshot, v.ID, ErrExists)
	case len(v.Snapshots) >= MaxSnapshots:
		return fmt.Errorf("volume %s has %d snapshots; the most is %d", v.ID, len(v.Snapshots), MaxSnapshots)
	}
	s.changeVolume(v.ID, func(v *Volume) {
		v.Snapshots = slices.Insert(slices.Clone(v.Snapshots), at, Snapshot{Name: p.Snapshot, SizeBytes: p.SizeBytes, TakenAt: e.At})
	})
	return nil
}

// HasSnapshot reports whether the volume has a snapshot of the name.
func (v *Volume) HasSnapshot(name string) bool {
	return slices.ContainsFunc(v.Snapshots, func(s Snapshot) bool { return s.Name == name })
}

func (p *SnapshotDeleted) fold(s *State, _ Event) error {
	v, err := s.known(p.Volume)
	if err != nil {
		return err
	}
	if !v.HasSnapshot(p.Snapshot) {
		return fmt.Errorf("snapshot %s of volume %s: %w", p.Snapshot, v.ID, ErrNotFound)
	}
	s.changeVolume(v.ID, func(v *Volume) {
		v.Snapshots = slices.DeleteFunc(slices.Clone(v.Snapshots), func(s Snapshot) bool { return s.Name == p.Snapshot })
	})
	return nil
}

func (p *VolumeExported) fold(s *State, _ Event) error {
	v, err := s.known(p.Volume)
	if err != nil {
		return err
	}
	if p.Snapshot != "" && !v.HasSnapshot(p.Snapshot) {
		return fmt.Errorf("snapshot %s of volume %s: %w", p.Snapshot, v.ID, ErrNotFound)
	}
	return nil
}

// takeVolumes checks that an instance is placed where its volumes are, and has them follow the manifest's sizes.
func (s *State) takeVolumes(d *Deployment, r *Release, p PlannedStart) error {
	if p.Task {
		return nil
	}
	for name, want := range r.Manifest.Volumes {
		v := s.VolumeOf(d.Environment, d.App, p.Ordinal, name)
		switch {
		case v == nil:
			return fmt.Errorf("its volume %s is bound to no host", name)
		case v.Host != p.Host:
			return fmt.Errorf("its volume %s is on host %s, not on %s", name, v.Host, p.Host)
		case v.SizeBytes < want.SizeBytes:
			s.changeVolume(v.ID, func(v *Volume) { v.SizeBytes = want.SizeBytes })
		}
	}
	return nil
}

// madeVolumes notes that the volumes of an instance must be there from now on.
func (s *State) madeVolumes(i *Instance) {
	if i.Task {
		return
	}
	for name := range s.Release(i.Release).Manifest.Volumes {
		if v := s.VolumeOf(i.Environment, i.App, i.Ordinal, name); v != nil && !v.Made {
			s.changeVolume(v.ID, func(v *Volume) { v.Made = true })
		}
	}
}
