//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// ioctls of linux/fs.h: _IOWR('X', 119, int) and the next.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// maxFreeze bounds how long writers of a volume may wait for the host.
const maxFreeze = 2 * time.Minute

// freezer stops the writing to volumes for as long as the host copies them. It lets go by itself when the host does not
// come back: a workload must not stand still for good because a host was killed.
type freezer struct {
	dirs map[string]string // by the volume's name: where it is mounted. Set before the workload runs.

	mu     sync.Mutex
	frozen map[string]*time.Timer // guarded by mu: ends the freeze
}

// serveFreezes does what the host asks for, one after the other.
func (b *Boot) serveFreezes() {
	for m := range b.control.freezes {
		answer := guest.Frozen{Volume: m.Volume, ID: m.ID}
		err := recovered(func() (err error) {
			if m.ForMS > 0 {
				return b.freezer.freeze(m.Volume, time.Duration(m.ForMS)*time.Millisecond)
			}
			answer.Whole, err = b.freezer.thaw(m.Volume)
			return err
		})
		if err != nil {
			answer.Error = err.Error()
		}
		b.control.trySend(answer)
	}
}

// freeze writes out everything and lets writers wait, for at most limit.
func (f *freezer) freeze(volume string, limit time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, ok := f.dirs[volume]
	if !ok {
		return fmt.Errorf("the workload has no volume %s that could be frozen", volume)
	}
	if f.frozen[volume] != nil {
		return fmt.Errorf("volume %s is frozen already", volume)
	}
	if err := freezeIoctl(dir, fiFreeze); err != nil {
		return fmt.Errorf("freeze volume %s: %w", volume, err)
	}
	if f.frozen == nil {
		f.frozen = map[string]*time.Timer{}
	}
	f.frozen[volume] = time.AfterFunc(min(limit, maxFreeze), func() {
		if _, err := f.thaw(volume); err != nil {
			logf(logError, "%v", err)
		}
	})
	return nil
}

// thaw ends the freeze of a volume, and tells whether it was frozen until now.
func (f *freezer) thaw(volume string) (whole bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	timer := f.frozen[volume]
	if timer == nil {
		return false, nil // it has ended by itself
	}
	timer.Stop()
	delete(f.frozen, volume)
	if err := freezeIoctl(f.dirs[volume], fiThaw); err != nil {
		return false, fmt.Errorf("thaw volume %s: %w", volume, err)
	}
	return true, nil
}

// thawAll is for the end, when everything is written out.
func (f *freezer) thawAll() {
	f.mu.Lock()
	var all []string
	for volume := range f.frozen {
		all = append(all, volume)
	}
	f.mu.Unlock()
	for _, volume := range all {
		if _, err := f.thaw(volume); err != nil {
			logf(logError, "%v", err)
		}
	}
}

func freezeIoctl(dir string, request uint) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	var unused int32
	err = ioctl(fd, request, unsafe.Pointer(&unused)) //nolint:gosec // int, which the kernel ignores
	if request == fiThaw && errors.Is(err, unix.EINVAL) {
		return nil // it is not frozen
	}
	return err
}
