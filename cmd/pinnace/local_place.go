package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// A localPlace is what a name has on this machine: directories, user ids, and names of network devices that no other has.
//
//	DATA_DIR/local/NAME/agent     what an agent keeps: programs to boot, and logs while it runs
//	DATA_DIR/local/NAME/volumes   the volumes
//	RUN_DIR/local/NAME            what does not survive the host; gone after an end in order
//
// The lock in DATA_DIR/local/NAME says that it runs. Whoever has it finds in RUN_DIR what a run that was killed has left.
type localPlace struct {
	name string
	dirs directories
	held *durable.DirLock
	uids uint32 // the first of its user ids
}

// localUIDs is how many user ids a name has: as many VMs it can have at a time, those that an earlier run has left included.
const localUIDs = 16

func localData(dirs directories, name string) string { return filepath.Join(dirs.data, "local", name) }

func localRun(dirs directories, name string) string { return filepath.Join(dirs.run, "local", name) }

func (p *localPlace) volumes() string { return filepath.Join(p.dirs.data, "volumes") }

// takeLocal takes a name, with firstUID as the first of the user ids of all names.
func takeLocal(ctx context.Context, dirs directories, name string, firstUID uint32) (*localPlace, error) {
	p := &localPlace{name: name, dirs: directories{data: localData(dirs, name), run: localRun(dirs, name)}}
	err := durable.MkdirAll(dirs.data, 0o755) // what is below is closed
	if err == nil {
		err = durable.MkdirAll(p.dirs.data, 0o700)
	}
	if err != nil {
		return nil, fail(exitInvalid, "--data-dir and --run-dir say where to keep things", "make a directory: %w", err)
	}
	// Who lists names takes each for a moment.
	held, err := lockPatiently(ctx, p.dirs.data, 200*time.Millisecond)
	if errors.Is(err, durable.ErrLocked) {
		return nil, fail(exitConflict, "stop it with Ctrl-C, or run another one beside it with --name", "%s runs locally already: %w", name, err)
	}
	if err != nil {
		return nil, err
	}
	p.held = held
	if err := p.takeUIDs(ctx, filepath.Dir(p.dirs.run), firstUID); err != nil {
		return nil, errors.Join(err, p.release())
	}
	return p, nil
}

// release gives the name up, and what it has below RUN_DIR unless something may run from there.
func (p *localPlace) release() error {
	var err error
	if !p.left() {
		err = os.RemoveAll(p.dirs.run)
	}
	return errors.Join(err, p.held.Unlock())
}

// uidsName is the file in RUN_DIR/local/NAME with the first of its user ids.
const uidsName = "uids"

// takeUIDs takes the lowest user ids that no other name has, unless it has some.
func (p *localPlace) takeUIDs(ctx context.Context, all string, first uint32) (err error) {
	if err := durable.MkdirAll(p.dirs.run, 0o700); err != nil {
		return err
	}
	choosing, err := lockPatiently(ctx, all, 10*time.Second)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, choosing.Unlock()) }()
	files, err := filepath.Glob(filepath.Join(all, "*", uidsName))
	if err != nil {
		return err
	}
	mine := filepath.Join(p.dirs.run, uidsName)
	var taken []uint32
	for _, file := range files {
		b, readErr := os.ReadFile(file)
		n, parseErr := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
		if readErr != nil || parseErr != nil {
			continue // it is gone, or was cut by a crash of the host; then nothing runs under it
		}
		if file == mine {
			p.uids = uint32(n)
			return nil
		}
		taken = append(taken, uint32(n))
	}
	for p.uids = first; slices.ContainsFunc(taken, func(n uint32) bool { return n < p.uids+localUIDs && p.uids < n+localUIDs }); {
		p.uids += localUIDs
	}
	return durable.WriteFile(mine, fmt.Appendf(nil, "%d\n", p.uids), 0o600)
}

// lockPatiently waits for a lock, for as long as somebody may have it who does not keep it.
func lockPatiently(ctx context.Context, dir string, patience time.Duration) (*durable.DirLock, error) {
	for deadline := time.Now().Add(patience); ; {
		l, err := durable.Lock(dir)
		if !errors.Is(err, durable.ErrLocked) || time.Now().After(deadline) || ctx.Err() != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// prefix begins the names of its network devices. It is the same at each start, so that what was left is found.
func (p *localPlace) prefix() string {
	sum := sha256.Sum256([]byte(p.dirs.run))
	text := strconv.FormatUint(uint64(binary.BigEndian.Uint32(sum[:])), 36)
	return "l" + (strings.Repeat("0", 5) + text)[len(text):]
}

// learn takes over what other agents of this machine have found out about it, which takes a while to find out: each
// answer says itself what it holds for, so that one that does not hold here does no harm. What cannot be had is found
// out again.
func (p *localPlace) learn() {
	all := filepath.Dir(filepath.Dir(p.dirs.data))
	own := filepath.Join(p.dirs.data, "agent", "probe")
	for _, pattern := range []string{filepath.Join(all, "agent"), filepath.Join(all, "local", "*", "agent")} {
		answers, err := filepath.Glob(filepath.Join(pattern, "probe", "*.json"))
		if err != nil {
			return
		}
		for _, answer := range answers {
			mine := filepath.Join(own, filepath.Base(answer))
			theirs, err := os.Stat(answer)
			if have, statErr := os.Stat(mine); err != nil || statErr == nil && !have.ModTime().Before(theirs.ModTime()) {
				continue
			}
			if b, err := os.ReadFile(answer); err == nil && durable.MkdirAll(own, 0o700) == nil {
				_ = durable.WriteFile(mine, b, 0o600)
			}
		}
	}
}

// clear removes what is of no use once nothing runs. Volumes stay, and what makes the next start faster.
func (p *localPlace) clear() error {
	return errors.Join(
		os.RemoveAll(p.dirs.run),
		os.RemoveAll(filepath.Join(p.dirs.data, "agent", "logs")),
		os.RemoveAll(filepath.Join(p.dirs.data, "agent", "instances")),
	)
}

// left tells whether an earlier run has left something that may run, or that its like must clear away.
func (p *localPlace) left() bool {
	for _, pattern := range []string{"agent/vm/*", "network/netns/*", filepath.Base(proxySocket(p.dirs.run))} {
		if found, err := filepath.Glob(filepath.Join(p.dirs.run, pattern)); err != nil || len(found) > 0 {
			return true
		}
	}
	return false
}
