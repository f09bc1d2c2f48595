package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/monitor"
)

// A machine is one QEMU process, with its holder, which reads its console and sees its end.
type machine struct {
	*monitor.Monitor
	dir string
	id  string
	log *slog.Logger
}

var _ vm.Machine = (*machine)(nil)

// starting is what it takes to start a machine.
type starting struct {
	spec   vm.Spec
	log    *slog.Logger
	holder string // program file
	files  *files
	group  *cgroup.Group // nil: none
	// console is read by the holder, and result is what it writes to.
	console, result *os.File
}

// open opens every file that the monitor will inherit, and those of its holder.
func (s *starting) open() error {
	s.files = &files{}
	if err := s.files.openBootFiles(s.spec, jailed()); err != nil {
		return err
	}
	if err := s.files.openDisks(s.spec.Disks); err != nil {
		return err
	}
	console, monitorConsole, err := os.Pipe()
	if err != nil {
		return err
	}
	s.console = console
	s.files.console = s.files.add(monitorConsole)
	if s.result, err = monitor.OpenResult(s.spec.Dir); err != nil {
		return fmt.Errorf("make the monitor's result file: %w", err)
	}
	if err := s.files.listen(s.spec.Dir); err != nil {
		return err
	}
	if s.spec.NIC != nil {
		s.files.tap = s.files.add(nil)
	}
	return nil
}

// jailed tells whether monitors get a mount namespace of their own, which takes root.
func jailed() bool { return os.Geteuid() == 0 }

// spawn starts the monitor. When it fails, nothing runs.
func (s *starting) spawn(binary string, args []string, kvm bool) (*machine, error) {
	if jailed() && !jailable(binary) {
		return nil, fmt.Errorf("%s is in none of /%s, which is all that a monitor can see", binary, strings.Join(jailDirs, ", /"))
	}
	var pending *monitor.Pending
	prepared := make(chan error, 1)
	onOwnThread(func() {
		var err error
		pending, err = s.prepareHere(binary, args, kvm)
		prepared <- err
	})
	if err := <-prepared; err != nil {
		return nil, err
	}
	s.close()
	m := &machine{dir: s.spec.Dir, id: s.spec.ID, log: s.log}
	mon, err := pending.Run(driverName, "", s.spec, monitor.Options{
		Log: s.log, Group: s.group, Remove: m.remove, Release: func() {},
	}, limit)
	if err != nil {
		return nil, err
	}
	m.Monitor = mon
	return m, nil
}

// prepareHere starts the holder from the calling thread, which is in the machine's namespaces afterwards.
func (s *starting) prepareHere(binary string, args []string, kvm bool) (*monitor.Pending, error) {
	devNull, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer devNull.Close()
	l := monitor.Launch{
		Holder: s.holder, Argv: append([]string{binary}, args...), Env: []string{"PATH=/usr/bin:/bin", "LC_ALL=C"},
		UID: -1, GID: -1, Tied: true,
	}
	if s.group != nil {
		l.Group, l.InGroup = s.group.FD()
	}
	if err := s.enter(&l, kvm); err != nil {
		return nil, err
	}
	l.Files, l.Kept, l.Console = s.files.inherited, s.spec.Kept, []*os.File{s.console}
	return monitor.Prepare(l, s.result, devNull)
}

// enter moves the calling thread to where the monitor is to be born, outermost first: after the jail, no
// file of the host is in reach.
func (s *starting) enter(l *monitor.Launch, kvm bool) error {
	if s.spec.Netns != "" {
		if err := enterNetns(s.spec.Netns); err != nil {
			return err
		}
	}
	if s.spec.NIC != nil {
		tap, err := openTap(s.spec.NIC.Tap)
		if err != nil {
			return err
		}
		s.files.inherited[s.files.tap-firstFD] = tap
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if !jailed() {
		return nil
	}
	j := jail{
		dir: s.spec.Dir, uid: int(s.spec.UID), gid: int(s.spec.GID), holder: s.holder,
		kernel: s.spec.Kernel, initramfs: s.spec.Initramfs, kvm: kvm,
	}
	if err := j.enter(); err != nil {
		return fmt.Errorf("build the monitor's jail: %w", err)
	}
	l.UID, l.GID, l.Holder = j.uid, j.gid, jailHolder
	return nil
}

// limit bounds the holder, and with it the monitor.
func limit(pid int) error {
	if jailed() && !canLimit() {
		return nil
	}
	return limitResources(pid)
}

// close closes the caller's copies of what the monitor and its holder have, so that their other ends see its end.
func (s *starting) close() {
	if s.files != nil {
		s.files.close()
	}
	for _, f := range []*os.File{s.console, s.result} {
		if f != nil {
			f.Close()
		}
	}
}

// undo removes what was made for a machine that does not run.
func (s *starting) undo() {
	s.close()
	if s.group != nil {
		if err := s.group.Remove(); err != nil {
			s.log.Warn("cgroup is left behind", "error", err)
		}
	}
	removeSockets(s.spec.Dir, s.log)
	if err := vm.RemoveRecord(s.spec.Dir); err != nil {
		s.log.Warn("record is left behind", "error", err)
	}
}

// remove removes the sockets of a machine that has ended.
func (m *machine) remove() { removeSockets(m.dir, m.log) }

func removeSockets(dir string, log *slog.Logger) {
	for _, ch := range vm.Channels() {
		if err := os.Remove(filepath.Join(dir, string(ch))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Warn("socket is left behind", "error", err)
		}
	}
}

// Adopt implements vm.Driver. QEMU listens on the sockets of its channels itself, and all else that it has is its own
// too, so that there is nothing to take over but the process.
func (d *Driver) Adopt(_ context.Context, r vm.Record) (vm.Machine, error) {
	m := &machine{dir: r.Dir, id: r.ID, log: d.opts.Log.With("machine", r.ID)}
	mon, err := monitor.Adopt(r, monitor.Options{Log: m.log, Remove: m.remove, Release: func() {}})
	if err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", r.ID, err)
	}
	m.Monitor = mon
	return m, nil
}

// Dial implements vm.Machine.
func (m *machine) Dial(ctx context.Context, ch vm.Channel) (net.Conn, error) {
	select {
	case <-m.Ended():
		return nil, fmt.Errorf("dial channel %s of machine %s: %w", ch, m.id, vm.ErrEnded)
	default:
	}
	path, done, err := shortPath(m.dir, string(ch))
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		// Nobody listens: the process has ended and is about to be reaped.
		err = vm.ErrEnded
	}
	if err != nil {
		return nil, fmt.Errorf("dial channel %s of machine %s: %w", ch, m.id, err)
	}
	return conn, nil
}
