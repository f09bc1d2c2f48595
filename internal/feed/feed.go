package feed

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

const (
	// MaxPiece is the size that a piece does not exceed unless a single thing does, in bytes. Messages are made of few
	// pieces, so that what is kept for an agent that reads slowly is small.
	MaxPiece = 32 << 10
	// remembered bounds the changes that a feed keeps for those who come for them late, in bytes, beside what the whole
	// takes: whoever is further behind is better off with the whole.
	remembered = 16 << 10
)

// A Feed is a collection of things, and what has changed in it lately. It is not safe for use by several goroutines, but
// the pieces that it gives may be kept and read by anybody; nobody may change them.
type Feed struct {
	id      ID
	header  []byte            // every change begins with it: of which feed it is
	items   map[string][]byte // by key; each is an encoded FleetChange with that thing alone
	bytes   int               // of items
	next    map[string][]byte // what Publish is to do, by key; nil for what goes
	version uint64            // counts changes, from 1
	recent  []change          // the last of them, oldest first
	kept    int               // bytes of recent
	whole   [][]byte          // nil when it has to be made anew
}

// ID tells feeds apart.
type ID struct {
	Kind        pb.FleetFeed
	Environment string
}

type change struct {
	version uint64
	pieces  [][]byte
	bytes   int
}

// New makes an empty feed. environment is "" for that of the hosts.
func New(kind pb.FleetFeed, environment string) *Feed {
	return &Feed{id: ID{kind, environment}, header: encode(&pb.FleetChange{Feed: kind, Environment: environment}), items: map[string][]byte{}, next: map[string][]byte{}, version: 1}
}

// Put has the next change bring a thing, unless it is there and the same. item has that thing and nothing else.
func (f *Feed) Put(key string, item *pb.FleetChange) {
	b := encode(item)
	if bytes.Equal(f.items[key], b) {
		delete(f.next, key)
		return
	}
	f.next[key] = b
}

// Remove has the next change take a thing away, if it is there.
func (f *Feed) Remove(key string) {
	if _, ok := f.items[key]; ok {
		f.next[key] = nil
		return
	}
	delete(f.next, key)
}

// ID says which feed it is.
func (f *Feed) ID() ID { return f.id }

// Keys are those of the things that there are, after the last change.
func (f *Feed) Keys() []string { return slices.Collect(maps.Keys(f.items)) }

// Len is how many things there are, after the last change.
func (f *Feed) Len() int { return len(f.items) }

// Publish makes one change of everything since the last one, and tells whether there was anything.
func (f *Feed) Publish() bool {
	if len(f.next) == 0 {
		return false
	}
	var gone []string
	var come [][]byte
	for _, key := range slices.Sorted(maps.Keys(f.next)) {
		f.bytes -= len(f.items[key])
		if b := f.next[key]; b != nil {
			f.items[key] = b
			f.bytes += len(b)
			come = append(come, b)
		} else {
			delete(f.items, key)
			gone = append(gone, key)
		}
	}
	f.next = map[string][]byte{}
	f.version++
	f.whole = nil
	c := change{version: f.version}
	for len(gone) > 0 {
		n := min(len(gone), MaxPiece/256)
		come = append(come, encode(&pb.FleetChange{Gone: gone[:n]}))
		gone = gone[n:]
	}
	c.pieces = pieces(f.header, come)
	for _, p := range c.pieces {
		c.bytes += len(p)
	}
	f.recent = append(f.recent, c)
	f.kept += c.bytes
	for len(f.recent) > 0 && f.kept > f.bytes+remembered {
		f.kept -= f.recent[0].bytes
		f.recent = slices.Delete(f.recent, 0, 1)
	}
	return true
}

// Since gives what somebody lacks who knows the feed as of a version, 0 for nothing, and the version that they know it of
// then. There is nothing when they are up to date.
func (f *Feed) Since(version uint64) ([][]byte, uint64) {
	if version == f.version {
		return nil, f.version
	}
	if version > 0 && len(f.recent) > 0 && f.recent[0].version <= version+1 {
		var all [][]byte
		for _, c := range f.recent {
			if c.version > version {
				all = append(all, c.pieces...)
			}
		}
		return all, f.version
	}
	if f.whole == nil {
		var items [][]byte
		for _, key := range slices.Sorted(maps.Keys(f.items)) {
			items = append(items, f.items[key])
		}
		f.whole = pieces(f.header, append([][]byte{encode(&pb.FleetChange{Whole: true})}, items...))
	}
	return f.whole, f.version
}

// End is the piece that tells somebody to forget the feed.
func (f *Feed) End() []byte {
	return pieces(f.header, [][]byte{encode(&pb.FleetChange{Ended: true})})[0]
}

// pieces puts parts of a FleetChange together to changes of a bounded size. One encoding after the other is the encoding
// of both together: so says the format.
func pieces(header []byte, parts [][]byte) [][]byte {
	var all [][]byte
	var body []byte
	flush := func() {
		piece := protowire.AppendTag(make([]byte, 0, len(body)+8), changesField, protowire.BytesType)
		all = append(all, protowire.AppendBytes(piece, body))
		body = nil
	}
	for _, p := range parts {
		if len(body) > 0 && len(body)+len(p) > MaxPiece {
			flush()
		}
		if body == nil {
			body = append(make([]byte, 0, min(MaxPiece, len(header)+len(p)+512)), header...)
		}
		body = append(body, p...)
	}
	if body != nil {
		flush()
	}
	return all
}

// changesField is the number of fleet_changes.
var changesField = (&pb.WatchAssignmentsResponse{}).ProtoReflect().Descriptor().Fields().ByName("fleet_changes").Number()

// Attach adds pieces to a message that is about to be sent in binary: they are the encoding of its fleet_changes.
func Attach(msg *pb.WatchAssignmentsResponse, pieces ...[]byte) {
	m := msg.ProtoReflect()
	m.SetUnknown(append(m.GetUnknown(), bytes.Join(pieces, nil)...))
}

func encode(c *pb.FleetChange) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		// Names are checked before they come here, and nothing else can fail: this is a mistake of the caller.
		panic(fmt.Sprintf("feed: a change cannot be encoded: %v", err))
	}
	return b
}
