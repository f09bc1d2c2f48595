package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A cost is what something took.
type cost struct {
	cpu, wall time.Duration
	memory    int64 // most that all processes had at a time, as far as looking now and then shows
	output    []byte
}

// A group holds processes whose CPU time and memory are counted together, with all that they start: a daemon
// and what it runs are as much a tool as a command is.
type group struct {
	path string
	v2   bool
}

func newGroup(name string) (*group, error) {
	v1 := "/sys/fs/cgroup/cpuacct"
	g := &group{path: filepath.Join(v1, "pinnace-bench-"+name)}
	if _, err := os.Stat(v1); err != nil {
		g = &group{path: filepath.Join("/sys/fs/cgroup", "pinnace-bench-"+name), v2: true}
	}
	_ = os.Remove(g.path) // of a run that was killed
	return g, os.Mkdir(g.path, 0o750)
}

func (g *group) remove() error {
	// The kernel takes a moment to see that the last process is gone.
	var err error
	for range 200 {
		if err = os.Remove(g.path); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return err
}

// command runs in the group.
func (g *group) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{"-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, g.path}, args...)
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (g *group) cpu() (time.Duration, error) {
	if !g.v2 {
		b, err := os.ReadFile(filepath.Join(g.path, "cpuacct.usage"))
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return time.Duration(n), err
	}
	b, err := os.ReadFile(filepath.Join(g.path, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, errors.New("cpu.stat has no usage")
}

// memory is what the processes have now, shared pages counted once for each.
func (g *group) memory() (sum int64) {
	b, err := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
	if err != nil {
		return 0
	}
	for pid := range strings.FieldsSeq(string(b)) {
		statm, err := os.ReadFile("/proc/" + pid + "/statm")
		if err != nil {
			continue
		}
		if fields := strings.Fields(string(statm)); len(fields) > 1 {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			sum += n * int64(os.Getpagesize())
		}
	}
	return sum
}

// measure runs a command in the group and counts what the whole group takes meanwhile.
func (g *group) measure(ctx context.Context, args ...string) (c cost, err error) {
	before, err := g.cpu()
	if err != nil {
		return c, err
	}
	var output, complaint bytes.Buffer
	cmd := g.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &output, &complaint
	done := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			c.memory = max(c.memory, g.memory())
			select {
			case <-done:
				return
			case <-time.After(25 * time.Millisecond):
			}
		}
	})
	begin := time.Now()
	err = cmd.Run()
	c.wall = time.Since(begin)
	close(done)
	watcher.Wait()
	if err != nil {
		return c, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, lastLines(complaint.String()+output.String()))
	}
	after, err := g.cpu()
	c.cpu, c.output = after-before, output.Bytes()
	return c, err
}

func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

func median[T cmp.Ordered](list []T) T {
	var zero T
	if len(list) == 0 {
		return zero
	}
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}
