package eventlog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// The copy of what is derived from the events is one file: derivedMagic, a line of JSON (derivedHeader), and
// the three parts whose lengths are in it. It is written whole or not at all, and believed only when all of
// it fits the log that is opened; else everything is derived anew.
const (
	derivedName  = "derived"
	derivedMagic = "pinnace derived copy 1\n"
	// derivedCode is the version of the code that makes versions and keys from events. It goes up whenever
	// the same events may give others.
	derivedCode = 1
	// maxDerivedHeader bounds the line of JSON.
	maxDerivedHeader = 4096
)

type derivedHeader struct {
	Code         int    `json:"code"`
	StateVersion uint32 `json:"state_version"`
	Log          LogID  `json:"log"`
	// The watermark: what the copy was derived from.
	Seq  uint64 `json:"seq"`
	Hash Hash   `json:"hash"`
	Time int64  `json:"time"`

	Versions int64 `json:"versions"` // lengths of the parts, in bytes
	Keys     int64 `json:"keys"`
	State    int64 `json:"state"`
	SHA256   Hash  `json:"sha256"` // of the parts
}

// derived is what the log itself derives from its events, and the caller's state in its own encoding.
type derived struct {
	head     Head
	time     int64
	versions map[string]uint64
	keys     keySlab
	state    []byte
}

// restore gives what the copy holds, or what is known before the first event. The copy has seen a head, so a
// log that does not have that anymore is refused.
func (l *Log) restore(ctx context.Context, head Head) (*derived, error) {
	none := &derived{head: Head{Hash: l.Genesis()}, versions: make(map[string]uint64)}
	if l.opts.Dir == "" {
		return none, nil
	}
	d, err := l.readDerived()
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			l.warn(fmt.Errorf("the derived copy is not used, and made anew: %w", err))
		}
		return none, nil
	}
	if d.head.Seq > head.Seq {
		return nil, &RegressionError{Seen: d.head, Have: head}
	}
	have, err := l.headAt(ctx, d.head.Seq)
	if err != nil {
		return nil, err
	}
	if have != d.head {
		return nil, &RegressionError{Seen: d.head, Have: have}
	}
	if l.opts.Fold != nil {
		if err := l.opts.Fold.Restore(d.state); err != nil {
			l.warn(fmt.Errorf("the derived copy is not used, and made anew: %w", err))
			return none, nil
		}
	}
	d.state = nil
	return d, nil
}

func (l *Log) warn(err error) {
	if l.opts.Warn != nil {
		l.opts.Warn(err)
	}
}

// readDerived reads the copy and checks that it is one of this log, by this code.
func (l *Log) readDerived() (*derived, error) {
	b, err := os.ReadFile(filepath.Join(l.opts.Dir, derivedName))
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(b, []byte(derivedMagic))
	line, _, ended := bytes.Cut(rest[:min(len(rest), maxDerivedHeader)], []byte("\n"))
	if !ok || !ended {
		return nil, errors.New("it has another format")
	}
	body := rest[len(line)+1:]
	var h derivedHeader
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, err
	}
	var version uint32
	if l.opts.Fold != nil {
		version = l.opts.Fold.Version()
	}
	switch {
	case h.Log != l.id:
		return nil, fmt.Errorf("it is of the log %s", h.Log)
	case h.Code != derivedCode || h.StateVersion != version:
		return nil, fmt.Errorf("it was made by version %d/%d of the code, which is now %d/%d", h.Code, h.StateVersion, derivedCode, version)
	case h.Versions < 0 || h.Keys < 0 || h.State < 0 || h.Versions+h.Keys+h.State != int64(len(body)):
		return nil, errors.New("it was cut")
	case sha256.Sum256(body) != h.SHA256:
		return nil, errors.New("it is damaged")
	}
	d := &derived{head: Head{Seq: h.Seq, Hash: h.Hash}, time: h.Time}
	if d.versions, err = decodeVersions(body[:h.Versions]); err != nil {
		return nil, err
	}
	d.keys = keySlab(body[h.Versions:][:h.Keys])
	d.state = body[h.Versions+h.Keys:]
	return d, nil
}

// writeDerived replaces the copy.
func (l *Log) writeDerived(d *derived) error {
	versions := encodeVersions(d.versions)
	h := derivedHeader{
		Code: derivedCode, Log: l.id, Seq: d.head.Seq, Hash: d.head.Hash, Time: d.time,
		Versions: int64(len(versions)), Keys: int64(len(d.keys)), State: int64(len(d.state)),
	}
	if l.opts.Fold != nil {
		h.StateVersion = l.opts.Fold.Version()
	}
	sum := sha256.New()
	for _, part := range [][]byte{versions, d.keys, d.state} {
		sum.Write(part)
	}
	h.SHA256 = Hash(sum.Sum(nil))
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(l.opts.Dir, 0o700); err != nil {
		return err
	}
	f, err := durable.CreateTemp(l.opts.Dir, 0o600)
	if err != nil {
		return err
	}
	for _, part := range [][]byte{[]byte(derivedMagic), line, {'\n'}, versions, d.keys, d.state} {
		if _, err := f.Write(part); err != nil {
			return errors.Join(err, durable.Discard(f))
		}
	}
	return durable.Commit(f, filepath.Join(l.opts.Dir, derivedName))
}

// RemoveDerived removes the copy from dir, for whoever puts another log in the place of the one that it is of.
func RemoveDerived(dir string) error {
	if err := os.Remove(filepath.Join(dir, derivedName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func encodeVersions(versions map[string]uint64) []byte {
	var b []byte
	for _, stream := range slices.Sorted(maps.Keys(versions)) {
		b = binary.AppendUvarint(b, uint64(len(stream)))
		b = append(b, stream...)
		b = binary.AppendUvarint(b, versions[stream])
	}
	return b
}

func decodeVersions(b []byte) (map[string]uint64, error) {
	versions := make(map[string]uint64, len(b)/24)
	for r := bytes.NewReader(b); r.Len() > 0; {
		n, err := binary.ReadUvarint(r)
		if err != nil || n == 0 || n > MaxName {
			return nil, errors.New("a stream's name is damaged")
		}
		name := make([]byte, n)
		if _, err := io.ReadFull(r, name); err != nil {
			return nil, err
		}
		if versions[string(name)], err = binary.ReadUvarint(r); err != nil {
			return nil, err
		}
	}
	return versions, nil
}

// A keySlab holds idempotency keys and where their events are, sorted by key: a million of them in one piece
// of memory that needs no work to be loaded.
type keySlab []byte

const keyEntry = len(keyID{}) + 8 + 4 // the key, the first seq, how many events

func (s keySlab) len() int { return len(s) / keyEntry }

func (s keySlab) at(i int) (keyID, span) {
	e := s[i*keyEntry:]
	first := binary.BigEndian.Uint64(e[len(keyID{}):])
	n := binary.BigEndian.Uint32(e[len(keyID{})+8:])
	return keyID(e), span{first: first, last: first + uint64(n) - 1}
}

func (s keySlab) find(id keyID) (span, bool) {
	lo, hi := 0, s.len()
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if bytes.Compare(s[mid*keyEntry:][:len(id)], id[:]) < 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < s.len() {
		if have, sp := s.at(lo); have == id {
			return sp, true
		}
	}
	return span{}, false
}

// with merges newer keys into a slab of their own.
func (s keySlab) with(newer map[keyID]span) keySlab {
	ids := slices.SortedFunc(maps.Keys(newer), func(a, b keyID) int { return bytes.Compare(a[:], b[:]) })
	out := make(keySlab, 0, len(s)+len(ids)*keyEntry)
	i := 0
	for _, id := range ids {
		from := i
		for i < s.len() && bytes.Compare(s[i*keyEntry:][:len(id)], id[:]) < 0 {
			i++
		}
		out = append(out, s[from*keyEntry:i*keyEntry]...)
		if i < s.len() && bytes.Equal(s[i*keyEntry:][:len(id)], id[:]) {
			i++ // the newer one says where all of them are
		}
		sp := newer[id]
		out = append(out, id[:]...)
		out = binary.BigEndian.AppendUint64(out, sp.first)
		out = binary.BigEndian.AppendUint32(out, uint32(sp.last-sp.first+1))
	}
	return append(out, s[i*keyEntry:]...)
}
