package firecracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/monitor"
)

// A machine is one Firecracker process in its jail, with its holder, which reads what it prints and sees its end. It
// owns the goroutines that accept its guest's connections.
type machine struct {
	*monitor.Monitor
	id       string
	log      *slog.Logger
	jail     *jail
	channels map[vm.Channel]*channel
}

var _ vm.Machine = (*machine)(nil)

// listen opens the host's ends of the channels.
func (m *machine) listen(uid, gid uint32) error {
	m.channels = map[vm.Channel]*channel{}
	for _, ch := range vm.Channels() {
		c, err := m.jail.listen(ch, uid, gid)
		if err != nil {
			return err
		}
		m.channels[ch] = c
	}
	return nil
}

// spawn starts the jailer, which becomes the monitor. When it fails, nothing runs.
func (m *machine) spawn(h *host, o Options, spec vm.Spec, group *cgroup.Group) error {
	pending, err := m.prepare(h, o, spec, group)
	if err != nil {
		return err
	}
	// The holder has it, so that the jail has an owner as long as its machine runs.
	m.jail.disown()
	m.Monitor, err = pending.Run(driverName, m.jail.dir, spec, m.options(group), limit)
	return err
}

func (m *machine) options(group *cgroup.Group) monitor.Options {
	return monitor.Options{Log: m.log, Group: group, Remove: m.removeJail, Release: m.closeChannels}
}

// prepare starts the holder.
func (m *machine) prepare(h *host, o Options, spec vm.Spec, group *cgroup.Group) (*monitor.Pending, error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	open := func(f *os.File, err error) (*os.File, error) {
		if err == nil {
			files = append(files, f)
		}
		return f, err
	}
	result, err := open(monitor.OpenResult(spec.Dir))
	if err != nil {
		return nil, fmt.Errorf("make the monitor's result file: %w", err)
	}
	devNull, err := open(os.Open(os.DevNull))
	if err != nil {
		return nil, err
	}
	pipes := map[string]*os.File{}
	for _, name := range []string{jailConsole, jailLog, jailMetrics} {
		if pipes[name], err = open(m.jail.open(name)); err != nil {
			return nil, fmt.Errorf("open %s in the jail: %w", name, err)
		}
	}
	cgroupVersion := 0
	l := monitor.Launch{
		Holder: o.Holder, Env: []string{}, UID: -1, GID: -1,
		Kept: append([]*os.File{m.jail.owner}, spec.Kept...), Console: []*os.File{pipes[jailConsole]}, Complaints: []*os.File{pipes[jailLog]},
		Ignored: []*os.File{pipes[jailMetrics]},
	}
	if group != nil {
		cgroupVersion = h.hierarchy.Version
		l.Group, l.InGroup = group.FD()
	}
	l.Argv = append([]string{h.jailer}, jailerArguments(o.JailDir, h.binary, m.jail.id, spec, cgroupVersion)...)
	return monitor.Prepare(l, result, devNull)
}

// limit bounds the holder, and with it the monitor.
func limit(pid int) error {
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{Cur: vm.CoreLimit, Max: vm.CoreLimit}, nil); err != nil && canLimit() {
		return fmt.Errorf("limit the monitor's resources: %w", err)
	}
	return nil
}

// abandon ends a machine that is of no use, and says why.
func (m *machine) abandon(why error) error {
	select {
	case <-m.Ended():
	default:
		why = errors.Join(why, m.Kill())
	}
	exit, err := m.Wait(context.Background()) // a monitor that was killed ends
	if exit.Stderr != "" {
		why = fmt.Errorf("%w; it said: %s", why, exit.Stderr)
	}
	return errors.Join(why, err)
}

// configure tells the monitor what to run. When it returns nil, the guest runs.
func (m *machine) configure(ctx context.Context, spec vm.Spec) error {
	if n := commandLineLength(len(spec.Disks) + otherDevices); n > maxCommandLine {
		return fmt.Errorf("the kernel's command line may grow to %d bytes, and Firecracker takes %d", n, maxCommandLine)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	configured := make(chan struct{})
	defer close(configured)
	go func() {
		select {
		case <-m.Ended():
			exit, err := m.Wait(ctx)
			cancel(errors.Join(errors.New("the monitor ended before the guest ran: "+exit.String()), err))
		case <-configured:
		}
	}()
	if err := m.awaitAPI(ctx); err != nil {
		return fmt.Errorf("wait for firecracker's API: %w", err)
	}
	a := newAPI(m.dialAPI)
	defer a.close()
	for _, r := range requests(spec) {
		if err := a.put(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// awaitAPI waits until the monitor takes connections.
func (m *machine) awaitAPI(ctx context.Context) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		conn, err := m.dialAPI(ctx)
		if err == nil {
			return conn.Close()
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// dialAPI connects to the monitor. It is used only before the guest runs, when nobody hostile can have put anything
// in the socket's place.
func (m *machine) dialAPI(ctx context.Context) (net.Conn, error) {
	path, done, err := m.jail.socket(jailAPI)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// closeChannels closes this process's ends of the channels.
func (m *machine) closeChannels() {
	for _, c := range m.channels {
		c.close()
	}
}

func (m *machine) removeJail() {
	if err := m.jail.remove(); err != nil {
		m.log.Warn("jail is left behind", "error", err)
	}
}

// Adopt implements vm.Driver. The guest connects again to the sockets of its channels, which are made anew.
func (d *Driver) Adopt(_ context.Context, r vm.Record) (vm.Machine, error) {
	m, err := d.adopt(r)
	if err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", r.ID, err)
	}
	return m, nil
}

func (d *Driver) adopt(r vm.Record) (_ *machine, err error) {
	m := &machine{id: r.ID, log: d.opts.Log.With("machine", r.ID)}
	if m.jail, err = adoptJail(d.opts.JailDir, r.Jail); err != nil {
		return nil, err
	}
	// The holder is looked at first: nobody listens in the jail of a machine that is not ours.
	holder, err := r.Holder()
	if err != nil {
		return nil, err
	}
	if holder != nil {
		holder.Close()
		if err := m.listen(r.UID, r.UID); err != nil {
			m.closeChannels()
			return nil, err
		}
	}
	if m.Monitor, err = monitor.Adopt(r, m.options(nil)); err != nil {
		m.closeChannels()
		return nil, err
	}
	return m, nil
}

// Dial implements vm.Machine. Writing waits until the guest has connected.
func (m *machine) Dial(ctx context.Context, ch vm.Channel) (net.Conn, error) {
	conn, err := m.dial(ctx, ch)
	if err != nil {
		return nil, fmt.Errorf("dial channel %s of machine %s: %w", ch, m.id, err)
	}
	return conn, nil
}

func (m *machine) dial(ctx context.Context, ch vm.Channel) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, ok := m.channels[ch]
	switch {
	case m.channels == nil:
		return nil, vm.ErrEnded // it was adopted after its end
	case !ok:
		return nil, errors.New("there is no such channel")
	}
	return c.dial()
}
