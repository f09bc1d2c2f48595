package agent

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/durable"
)

// headSpacing is how often a head that only moved on is written to the disk.
const headSpacing = 10 * time.Second

// headMemory is the last event of the server's log that this host has heard of. A server whose log does not have
// it was restored from an older copy or has lost events in a failover; acting on what it says could undo what was
// decided since, so it is not obeyed, and what runs goes on.
type headMemory struct {
	path string

	mu      sync.Mutex
	seen    rememberedHead // guarded by mu
	stored  time.Time      // guarded by mu
	refused error          // guarded by mu; why the server is not obeyed
}

type rememberedHead struct {
	Log  string `json:"log"`
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

func openHeadMemory(path string) (*headMemory, error) {
	m := &headMemory{path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &m.seen)
	}
	if err != nil {
		return nil, fmt.Errorf("read the head of the server's log that was seen last, in %s: %w", path, err)
	}
	return m, nil
}

func (m *headMemory) seq() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen.Seq
}

// refusal is why the server is not obeyed, or nil.
func (m *headMemory) refusal() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refused
}

// joined holds what a server said when the agent joined against what was seen before.
func (m *headMemory) joined(asked uint64, res *pinnacev1.JoinResponse) error {
	m.mu.Lock()
	m.refused = m.check(asked, res)
	err := m.refused
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return m.remember(res.Head, true)
}

// check is called under mu.
func (m *headMemory) check(asked uint64, res *pinnacev1.JoinResponse) error {
	if res.Head == nil || m.seen.Log == "" {
		return nil // a server of the version before can't tell
	}
	var why string
	hash, err := hex.DecodeString(m.seen.Hash)
	switch {
	case res.Head.Log != m.seen.Log:
		why = fmt.Sprintf("it has the event log %s, not %s as before", res.Head.Log, m.seen.Log)
	case asked != m.seen.Seq:
		return errors.New("the head moved on while the agent joined")
	case err == nil && bytes.Equal(res.SeenHash, hash):
		return nil
	case res.Head.Seq < m.seen.Seq:
		why = fmt.Sprintf("its event log ends at event %d, but event %d was seen before", res.Head.Seq, m.seen.Seq)
	default:
		why = fmt.Sprintf("its event %d is not the one that was seen before", m.seen.Seq)
	}
	return fmt.Errorf("the server is not obeyed: %s, so it was restored from an older copy or has lost events. Where that is meant, delete %s", why, m.path)
}

// remember keeps a head of a server that is obeyed. One that only moved on need not be on the disk at once.
func (m *headMemory) remember(head *pinnacev1.LogHead, now bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if head == nil || m.refused != nil || head.Log == m.seen.Log && head.Seq <= m.seen.Seq || m.seen.Log != "" && head.Log != m.seen.Log {
		return nil
	}
	m.seen = rememberedHead{Log: head.Log, Seq: head.Seq, Hash: hex.EncodeToString(head.Hash)}
	if !now && time.Since(m.stored) < headSpacing {
		return nil
	}
	b, err := json.Marshal(m.seen)
	if err != nil {
		return err
	}
	m.stored = time.Now()
	return durable.WriteFile(m.path, append(b, '\n'), 0o600)
}

// headPath is where the agent in dir remembers the head.
func headPath(dir string) string { return filepath.Join(dir, "log-head") }
