package image

import (
	"io/fs"
	"sync"
	"syscall"
	"time"
)

// A memo remembers which files were found to be intact, so that an image that is looked up before every start
// is not read every time. Finished files are never written to, and a file whose inode, size or times are others
// than they were then is read again. What rots on the disk without a write shows in none of these, nor would it
// in a file that the host has in memory; the scrub is for that.
type memo struct {
	mu    sync.Mutex
	known map[string]known // by path; guarded by mu
}

type known struct {
	file fileState
	// What was found, for the caller to compare: an index's size of the tar, metadata's checksum.
	found int64
}

// A fileState changes when a file is written to or another one takes its place.
type fileState struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// maxKnown is of more files than an agent has in use. When there are more, all are forgotten.
const maxKnown = 20_000

// clockStep is more than the time that can pass between two writes to a file which leave it with the same times,
// because kernels keep them no finer than their clock ticks.
const clockStep = 100 * time.Millisecond

// stateOf gives no state for what is no file of this host.
func stateOf(info fs.FileInfo) (fileState, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileState{}, false
	}
	return fileState{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, true
}

// look gives what was found in the file at path, when it is the same as then.
func (m *memo) look(path string, info fs.FileInfo) (found int64, ok bool) {
	state, ok := stateOf(info)
	if !ok {
		return 0, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k, ok := m.known[path]
	return k.found, ok && k.file == state
}

// keep remembers what was found in a file, which looked like info before it was read.
func (m *memo) keep(path string, info fs.FileInfo, found int64) {
	state, ok := stateOf(info)
	if !ok || time.Since(time.Unix(state.ctime.Unix())) < clockStep {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil || len(m.known) >= maxKnown {
		m.known = map[string]known{}
	}
	m.known[path] = known{file: state, found: found}
}
