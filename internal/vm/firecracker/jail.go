package firecracker

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/vm"
)

// maxJailID keeps the path of a jail's API socket within the 107 bytes of a unix socket's address where the jailer
// makes jails by default, /srv/jailer/firecracker/ID/root/run/firecracker.socket, so that operators can reach it
// with any tool. The driver itself goes through descriptors, which have no such limit. The jailer takes 64.
const maxJailID = 107 - len("/srv/jailer/firecracker/") - len("/root"+jailAPI)

// A jail is the directory of one run of a machine:
//
//	<JailDir>/firecracker/<id>/owner   locked as long as the machine runs, by its holder; has the machine's id and directory
//	<JailDir>/firecracker/<id>/root/   the monitor's root directory, all that it sees
//
// The id is never used again, because the jailer refuses to build where something is left of an earlier jail. It
// tells nothing of the machine, because it is in the monitor's arguments.
type jail struct {
	id        string
	dir, root string
	owner     *os.File // holds the lock
}

// newJail makes a jail with all that the machine needs. The caller removes it, also when there is an error.
func newJail(base, program string, spec vm.Spec, log *slog.Logger) (*jail, error) {
	parent := filepath.Join(base, program)
	if err := durable.MkdirAll(parent, 0o711); err != nil {
		return nil, fmt.Errorf("make a jail: %w", err)
	}
	j := &jail{id: newJailID()}
	j.dir = filepath.Join(parent, j.id)
	j.root = filepath.Join(j.dir, "root")
	err := os.Mkdir(j.dir, 0o711) //nolint:gosec // the monitor's identity passes through it
	if err != nil {
		return nil, fmt.Errorf("make a jail: %w", err)
	}
	if err := j.fill(spec, log); err != nil {
		return nil, errors.Join(err, j.remove())
	}
	return j, nil
}

const jailPrefix = "vm-"

func newJailID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return jailPrefix + hex.EncodeToString(b[:])
}

func (j *jail) fill(spec vm.Spec, log *slog.Logger) error {
	if err := j.claim(spec); err != nil {
		return err
	}
	for _, dir := range []string{j.root, filepath.Join(j.root, jailRun)} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	for _, name := range []string{jailConsole, jailLog, jailMetrics} {
		path := filepath.Join(j.root, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return fmt.Errorf("make FIFO %s: %w", name, err)
		}
		if err := give(path, spec.UID, spec.GID); err != nil {
			return err
		}
	}
	return j.link(spec, log)
}

// claim takes the jail's lock before anybody can think it abandoned.
func (j *jail) claim(spec vm.Spec) error {
	var err error
	if j.owner, err = os.OpenFile(filepath.Join(j.dir, ownerName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("claim the jail: %w", err)
	}
	if err := unix.Flock(int(j.owner.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("claim the jail: %w", err)
	}
	if _, err := j.owner.WriteString(spec.ID + "\n" + spec.Dir + "\n"); err != nil {
		return fmt.Errorf("claim the jail: %w", err)
	}
	return nil
}

const ownerName = "owner"

// give makes the monitor's identity the owner of what is at path.
func give(path string, uid, gid uint32) error {
	if os.Geteuid() != 0 {
		return nil // then the identity is the caller's
	}
	return os.Lchown(path, int(uid), int(gid))
}

// socket names a socket in the jail's run directory through a descriptor, because its path may be too long for an
// address. The name is good until done is called.
func (j *jail) socket(name string) (path string, done func(), err error) {
	run, err := os.Open(filepath.Join(j.root, jailRun))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", run.Fd(), filepath.Base(name)), func() { run.Close() }, nil
}

// open opens a FIFO of the jail for its reader. It is open for writing too, so that it has no end before the monitor
// has opened its side.
func (j *jail) open(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(j.root, name), os.O_RDWR|unix.O_NONBLOCK, 0)
}

// disown lets go of the lock, which lives on in whoever has inherited it.
func (j *jail) disown() {
	if j.owner != nil {
		j.owner.Close()
		j.owner = nil
	}
}

// adoptJail is the jail at dir, which an earlier process has made below base.
func adoptJail(base, dir string) (*jail, error) {
	id := filepath.Base(dir)
	if filepath.Dir(filepath.Dir(dir)) != filepath.Clean(base) || !strings.HasPrefix(id, jailPrefix) {
		return nil, fmt.Errorf("%w: its jail %q is none of this driver's", vm.ErrNotOurs, dir)
	}
	return &jail{id: id, dir: dir, root: filepath.Join(dir, "root")}, nil
}

// remove removes the jail. Its monitor does not run.
func (j *jail) remove() error {
	err := os.RemoveAll(j.dir)
	j.disown()
	if err != nil {
		return fmt.Errorf("remove the jail: %w", err)
	}
	return nil
}

// jailerArguments returns the jailer's command line without the program's name.
func jailerArguments(base, binary, id string, spec vm.Spec, cgroupVersion int) []string {
	args := []string{
		"--id", id,
		"--exec-file", binary,
		"--uid", strconv.FormatUint(uint64(spec.UID), 10),
		"--gid", strconv.FormatUint(uint64(spec.GID), 10),
		"--chroot-base-dir", base,
		// A connection of vsock, of which there are at most 1023, is a descriptor.
		"--resource-limit", "no-file=2048",
	}
	if spec.Netns != "" {
		args = append(args, "--netns", spec.Netns)
	}
	// The monitor is in its cgroup before it runs. With version 2 the jailer would move it to one of its own choice
	// unless told that this is the one; with version 1 it moves nothing, and is not asked to.
	if cgroupVersion == 2 {
		args = append(args, "--cgroup-version", "2", "--parent-cgroup", filepath.Clean(spec.Cgroup))
	}
	return append(args, "--", "--api-sock", jailAPI)
}
