// Package cgroup puts the process of a virtual machine monitor into a control group of its own, so that its
// memory is bounded from outside and the host can tell when that bound killed it.
//
// It works on whichever hierarchy accounts memory on this host: version 1's memory controller, or version
// 2. It is not a general library for control groups: CPU, IO and the delegation of hierarchies are not here.
package cgroup

import (
	"bufio"
	"bytes"
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

// A Hierarchy is where this host accounts memory.
type Hierarchy struct {
	// Mount is the mount point.
	Mount string
	// Version is 1 or 2.
	Version int
}

// ErrUnsupported means that no hierarchy on this host accounts memory.
var ErrUnsupported = errors.New("no mounted cgroup hierarchy accounts memory")

// Find looks for the hierarchy that accounts memory. The error wraps ErrUnsupported when there is none.
func Find() (Hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Hierarchy{}, err
	}
	defer f.Close()
	var v2 string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		before, after, ok := strings.Cut(sc.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) < 3 {
			continue
		}
		switch {
		case kind[0] == "cgroup" && hasWord(kind[2], ",", "memory"):
			return Hierarchy{Mount: fields[4], Version: 1}, nil
		case kind[0] == "cgroup2":
			v2 = fields[4]
		}
	}
	if v2 == "" {
		return Hierarchy{}, ErrUnsupported
	}
	b, err := os.ReadFile(filepath.Join(v2, "cgroup.controllers"))
	if err != nil {
		return Hierarchy{}, err
	}
	if !hasWord(string(b), " ", "memory") {
		return Hierarchy{}, fmt.Errorf("%w: %s has only: %s", ErrUnsupported, v2, bytes.TrimSpace(b))
	}
	return Hierarchy{Mount: v2, Version: 2}, nil
}

func hasWord(s, sep, word string) bool {
	for w := range strings.SplitSeq(strings.TrimSpace(s), sep) {
		if w == word {
			return true
		}
	}
	return false
}

// A Group is one control group for one process.
type Group struct {
	path    string
	version int
	dir     *os.File
}

// Create makes the group name below the hierarchy's mount point and limits it to memory bytes, without
// swap where the host can say so. A group of that name that is there and empty is used again: it is what a
// crash leaves.
func (h Hierarchy) Create(name string, memory int64) (*Group, error) {
	path := filepath.Join(h.Mount, name)
	if h.Version == 2 {
		if err := h.enableMemory(name); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, fmt.Errorf("create cgroup: %w", err)
	}
	g := &Group{path: path, version: h.Version}
	if err := g.limit(memory); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	g.dir = dir
	return g, nil
}

// Open opens the group name that an earlier process made. The error wraps fs.ErrNotExist when it is not there.
func (h Hierarchy) Open(name string) (*Group, error) {
	path := filepath.Join(h.Mount, name)
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return &Group{path: path, version: h.Version, dir: dir}, nil
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

// enableMemory hands the memory controller down to the parents of name, which version 2 wants level by level.
func (h Hierarchy) enableMemory(name string) error {
	dir := h.Mount
	for part := range strings.SplitSeq(filepath.Clean(name), "/") {
		control := filepath.Join(dir, "cgroup.subtree_control")
		if err := os.WriteFile(control, []byte("+memory"), 0); err != nil {
			return fmt.Errorf("hand the memory controller down: %w", err)
		}
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("create cgroup: %w", err)
		}
	}
	return nil
}

func (g *Group) limit(memory int64) error {
	limit, swap, noSwap := "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", strconv.FormatInt(memory, 10)
	if g.version == 2 {
		limit, swap, noSwap = "memory.max", "memory.swap.max", "0"
	}
	if err := g.write(limit, strconv.FormatInt(memory, 10)); err != nil {
		return fmt.Errorf("limit cgroup to %d bytes: %w", memory, err)
	}
	// Hosts without swap accounting have no such file.
	if err := g.write(swap, noSwap); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("keep cgroup out of swap: %w", err)
	}
	return nil
}

func (g *Group) write(file, value string) error {
	// O_CREATE would turn a missing file into "permission denied".
	f, err := os.OpenFile(filepath.Join(g.path, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// FD is the descriptor to give to clone as CLONE_INTO_CGROUP; ok is false for version 1, which has no such
// thing.
func (g *Group) FD() (fd int, ok bool) {
	return int(g.dir.Fd()), g.version == 2
}

// Add moves a process into the group. With version 1, memory that it has already stays accounted where it
// was; with version 2, a process that was cloned into the group is there already, and stays.
func (g *Group) Add(pid int) error {
	if err := g.write("cgroup.procs", strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("add process to cgroup: %w", err)
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
	return errors.Join(g.dir.Close(), remove(g.path))
}

// Remove removes the group name that an earlier process made and whose processes have ended. One that is not
// there is no error.
func (h Hierarchy) Remove(name string) error {
	return remove(filepath.Join(h.Mount, name))
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
