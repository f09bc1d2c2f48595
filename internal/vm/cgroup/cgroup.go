// Package cgroup puts the process of a virtual machine monitor into a control group of its own, so that its memory,
// processes and IO are bounded from outside, its share of the processors is weighed against others', and the host can
// tell when the bound on memory killed it.
//
// It works on whichever hierarchies this host has for that: those of version 1, one for each controller or several, the
// one of version 2, or both side by side. It is not a general library for control groups: it has what monitors need,
// starts a process inside its group where the kernel can do that, and takes over the groups of an earlier process.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Controller is what a hierarchy accounts and bounds.
type Controller string

// The controllers that monitors have a use for. IO is called blkio in version 1.
const (
	Memory Controller = "memory"
	CPU    Controller = "cpu"
	PIDs   Controller = "pids"
	IO     Controller = "io"
)

// Controllers lists them.
func Controllers() []Controller { return []Controller{Memory, CPU, PIDs, IO} }

// nameV1 is what version 1 calls the controller.
func (c Controller) nameV1() string {
	if c == IO {
		return "blkio"
	}
	return string(c)
}

// mount is where a controller is.
type mount struct {
	path    string
	version int
}

// A Hierarchy is where this host accounts what monitors use: one hierarchy or several.
type Hierarchy struct {
	// Mount is the mount point of the hierarchy that accounts memory, and Version its version, 1 or 2.
	Mount   string
	Version int

	mounts map[Controller]mount
}

// ErrUnsupported means that no hierarchy on this host accounts memory.
var ErrUnsupported = errors.New("no mounted cgroup hierarchy accounts memory")

// Find looks for the hierarchies. The error wraps ErrUnsupported when none accounts memory; the other controllers may be
// missing.
func Find() (Hierarchy, error) { return FindIn("/proc/self/mountinfo") }

// FindIn is Find with another list of mounts.
func FindIn(mountinfo string) (Hierarchy, error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return Hierarchy{}, err
	}
	defer f.Close()
	h := Hierarchy{mounts: map[Controller]mount{}}
	var v2 string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		before, after, ok := strings.Cut(sc.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) < 3 {
			continue
		}
		switch kind[0] {
		case "cgroup":
			for _, c := range Controllers() {
				// The first is this system's own. Others come and go, such as those of a chroot.
				if _, known := h.mounts[c]; !known && hasWord(kind[2], ",", c.nameV1()) {
					h.mounts[c] = mount{fields[4], 1}
				}
			}
		case "cgroup2":
			if v2 == "" {
				v2 = fields[4]
			}
		}
	}
	has := ""
	if v2 != "" {
		// A controller is in one hierarchy only.
		b, err := os.ReadFile(filepath.Join(v2, "cgroup.controllers"))
		if err != nil {
			return Hierarchy{}, err
		}
		has = strings.TrimSpace(string(b))
		for _, c := range Controllers() {
			if hasWord(has, " ", string(c)) {
				h.mounts[c] = mount{v2, 2}
			}
		}
	}
	memory, ok := h.mounts[Memory]
	switch {
	case !ok && v2 != "":
		return Hierarchy{}, fmt.Errorf("%w: %s has only: %s", ErrUnsupported, v2, has)
	case !ok:
		return Hierarchy{}, ErrUnsupported
	}
	h.Mount, h.Version = memory.path, memory.version
	return h, nil
}

// Missing are the controllers that this host does not have.
func (h Hierarchy) Missing() []Controller {
	return slices.DeleteFunc(Controllers(), func(c Controller) bool { _, ok := h.mounts[c]; return ok })
}

// Weakness says what is not bounded or weighed for want of controllers, for people; empty when none is missing.
func (h Hierarchy) Weakness() string {
	var words []string
	for _, c := range h.Missing() {
		words = append(words, map[Controller]string{
			CPU: "shares of the processors are not weighed", PIDs: "processes of monitors are not counted", IO: "IO cannot be bounded",
		}[c]+" (no "+string(c)+" controller)")
	}
	return strings.Join(words, ", ")
}

// paths are where the group name is in each hierarchy, that which accounts memory first.
func (h Hierarchy) paths(name string) []string {
	paths := []string{filepath.Join(h.Mount, name)}
	for _, c := range Controllers() {
		if m, ok := h.mounts[c]; ok {
			paths = append(paths, filepath.Join(m.path, name))
		}
	}
	return unique(paths)
}

func unique(paths []string) []string {
	var out []string
	for _, p := range paths {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

func hasWord(s, sep, word string) bool {
	for w := range strings.SplitSeq(strings.TrimSpace(s), sep) {
		if w == word {
			return true
		}
	}
	return false
}

// A Group is one control group for one process and those that it starts.
type Group struct {
	path    string // where memory is accounted
	version int
	dir     *os.File
	others  []string // the group in the other hierarchies
}

// Create makes the group name below the mount points and sets its limits. A group of that name that is there and empty is
// used again: it is what a crash leaves.
func (h Hierarchy) Create(name string, l Limits) (_ *Group, err error) {
	paths := h.paths(name)
	g := &Group{path: paths[0], version: h.Version, others: paths[1:]}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.discard())
		}
	}()
	if err := h.makeParents(name); err != nil {
		return nil, err
	}
	for _, path := range paths {
		if err := os.MkdirAll(path, 0o750); err != nil {
			return nil, fmt.Errorf("create cgroup: %w", err)
		}
	}
	if err := h.limit(name, l); err != nil {
		return nil, err
	}
	if g.dir, err = os.Open(g.path); err != nil {
		return nil, err
	}
	return g, nil
}

// discard removes a group that nothing was put into.
func (g *Group) discard() error {
	var errs []error
	for _, path := range append(slices.Clone(g.others), g.path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Open opens the group name that an earlier process made. The error wraps fs.ErrNotExist when it is not there.
func (h Hierarchy) Open(name string) (*Group, error) {
	paths := h.paths(name)
	dir, err := os.Open(paths[0])
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return &Group{path: paths[0], version: h.Version, dir: dir, others: paths[1:]}, nil
}

// Children are the groups directly below name; none when that is not there.
func (h Hierarchy) Children(name string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(h.Mount, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, filepath.Join(name, e.Name()))
		}
	}
	return names, nil
}

// Kill ends every process in the group name and waits until they have ended. A group that is not there has none.
func (h Hierarchy) Kill(ctx context.Context, name string) error {
	path := filepath.Join(h.Mount, name, "cgroup.procs")
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("end the processes of a cgroup: %w", err)
		}
		pids := strings.Fields(string(b))
		if len(pids) == 0 {
			return nil
		}
		for _, text := range pids {
			if err := killMember(path, text); err != nil {
				return fmt.Errorf("end process %s of a cgroup: %w", text, err)
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("end the processes of a cgroup: %w", ctx.Err())
		}
	}
}

// killMember kills a process if it is in the group still once it is held, so that it can't be another by then.
func killMember(procs, pid string) error {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	if n <= 1 {
		return nil // of another namespace of process ids
	}
	fd, err := unix.PidfdOpen(n, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	b, err := os.ReadFile(procs)
	if err != nil || !slices.Contains(strings.Fields(string(b)), pid) {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// FD is the descriptor to give to clone as CLONE_INTO_CGROUP; ok is false for version 1, which has no such
// thing.
func (g *Group) FD() (fd int, ok bool) {
	return int(g.dir.Fd()), g.version == 2
}

// Add moves a process into the group. With version 1, memory that it has already stays accounted where it
// was; with version 2, a process that was cloned into the group is there already, and stays.
func (g *Group) Add(pid int) error {
	for _, path := range append([]string{g.path}, g.others...) {
		if err := write(path, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("add process to cgroup: %w", err)
		}
	}
	return nil
}

// OOMKilled tells whether the kernel killed a process because the group reached its limit.
func (g *Group) OOMKilled() (bool, error) {
	file := "memory.oom_control"
	if g.version == 2 {
		file = "memory.events"
	}
	b, err := os.ReadFile(filepath.Join(g.path, file))
	if err != nil {
		return false, err
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return n != "0", nil
		}
	}
	return false, nil
}

// Close lets go of the group and leaves it in place.
func (g *Group) Close() { _ = g.dir.Close() } // a directory

// Remove removes the group. Its processes must have ended; the kernel may need a moment more to notice, so
// Remove tries for up to a second.
func (g *Group) Remove() error {
	return errors.Join(g.dir.Close(), removeAll(append([]string{g.path}, g.others...)))
}

// Remove removes the group name that an earlier process made and whose processes have ended. One that is not
// there is no error.
func (h Hierarchy) Remove(name string) error { return removeAll(h.paths(name)) }

// removeAll removes a group from all hierarchies, from the first, by which it is found, last.
func removeAll(paths []string) error {
	var errs []error
	for _, path := range slices.Backward(paths) {
		errs = append(errs, remove(path))
	}
	return errors.Join(errs...)
}

func remove(path string) error {
	deadline := time.Now().Add(time.Second)
	for {
		err := os.Remove(path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
