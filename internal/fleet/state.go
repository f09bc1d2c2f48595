package fleet

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"maps"
	"slices"
	"sync"
)

// State is the fold of the events up to Seq. It is not safe for use by several goroutines while one of
// them applies events; the records that its queries return may be kept and read by anybody.
type State struct {
	seq uint64

	environments table[Environment]
	apps         table[App] // by appKey
	hosts        table[Host]
	bookings     table[Booking] // by host
	releases     table[Release]
	deployments  table[Deployment]
	instances    table[Instance]
	active       table[Deployment]    // those that are active
	runs         table[Instance]      // by id, those of instances that are one-offs and run; it is in no hash
	bundles      table[Bundle]        // by environment and name
	logins       table[RegistryLogin] // by environment and registry
	past         table[Past]          // by the name of the environment
	volumes      table[Volume]
	mounts       table[Volume]    // those that are attached, by mountKey
	tokens       table[Token]     // by hash
	joins        table[Join]      // by hash
	admissions   table[Admission] // by host

	// undo holds what brings the rows back that an event replaced, for the events after settled.
	undo     []undoing
	tracking bool
}

type undoing struct {
	seq  uint64
	back []func()
}

// New returns the state before the first event.
func New() *State {
	s := &State{}
	for _, t := range s.tables() {
		t.reset(s)
	}
	s.runs.reset(s)
	return s
}

// Clone returns a state of its own that shares the records, which nobody changes.
func (s *State) Clone() *State {
	c := New()
	c.seq = s.seq
	c.environments.rows, c.apps.rows, c.hosts.rows = maps.Clone(s.environments.rows), maps.Clone(s.apps.rows), maps.Clone(s.hosts.rows)
	c.bookings.rows, c.releases.rows, c.deployments.rows = maps.Clone(s.bookings.rows), maps.Clone(s.releases.rows), maps.Clone(s.deployments.rows)
	c.instances.rows, c.active.rows, c.runs.rows = maps.Clone(s.instances.rows), maps.Clone(s.active.rows), maps.Clone(s.runs.rows)
	c.bundles.rows, c.logins.rows, c.past.rows = maps.Clone(s.bundles.rows), maps.Clone(s.logins.rows), maps.Clone(s.past.rows)
	c.volumes.rows, c.mounts.rows = maps.Clone(s.volumes.rows), maps.Clone(s.mounts.rows)
	c.tokens.rows, c.joins.rows, c.admissions.rows = maps.Clone(s.tokens.rows), maps.Clone(s.joins.rows), maps.Clone(s.admissions.rows)
	return c
}

// Track makes the state remember how to undo what is applied from now on, until Settle is called for it.
func (s *State) Track() { s.tracking = true }

// Seq is the sequence number of the last event that was applied; 0 before the first.
func (s *State) Seq() uint64 { return s.seq }

// Apply folds one event. When it returns an error the state is what it was before.
func (s *State) Apply(e Event) error {
	if e.Seq != s.seq+1 {
		return fmt.Errorf("apply event %d: the state is at %d", e.Seq, s.seq)
	}
	p, err := Decode(e.Type, e.TypeVersion, e.Payload)
	if err != nil {
		return fmt.Errorf("apply event %d: %w", e.Seq, err)
	}
	s.undo = append(s.undo, undoing{seq: s.seq})
	s.seq = e.Seq
	e.At = e.At.UTC() // a time zone must not change the hash
	if err := p.fold(s, e); err != nil {
		s.revertLast()
		return fmt.Errorf("apply event %d, %s: %w", e.Seq, e.Type, err)
	}
	if !s.tracking {
		s.undo = s.undo[:0]
	}
	return nil
}

// Revert undoes the events after seq, which must not have been settled.
func (s *State) Revert(seq uint64) error {
	for s.seq > seq {
		if len(s.undo) == 0 {
			return fmt.Errorf("revert to event %d: event %d was settled", seq, s.seq)
		}
		s.revertLast()
	}
	return nil
}

// Settle forgets how to undo the events up to seq.
func (s *State) Settle(seq uint64) {
	n := 0
	for n < len(s.undo) && s.undo[n].seq < seq {
		n++
	}
	s.undo = slices.Delete(s.undo, 0, n)
}

func (s *State) revertLast() {
	last := s.undo[len(s.undo)-1]
	s.undo = s.undo[:len(s.undo)-1]
	for _, back := range slices.Backward(last.back) {
		back()
	}
	s.seq = last.seq
}

// Hash is the SHA-256 over everything in the state. Two servers that folded the same events agree on it.
func (s *State) Hash() [32]byte {
	h := sha256.New()
	_ = binary.Write(h, binary.BigEndian, s.seq) // a hash never fails to write
	for _, t := range s.tables() {
		t.hash(h)
	}
	return [32]byte(h.Sum(nil))
}

// Freeze readies the state for many readers at the same time. Nothing may be applied to it afterwards.
func (s *State) Freeze() {
	for _, t := range s.tables() {
		t.freeze()
	}
}

type anyTable interface {
	reset(*State)
	freeze()
	hash(hash.Hash)
}

func (s *State) tables() []anyTable {
	return []anyTable{
		&s.environments, &s.apps, &s.hosts, &s.bookings, &s.releases, &s.deployments, &s.instances, &s.active,
		&s.bundles, &s.logins, &s.past,
		&s.volumes, &s.mounts,
		&s.tokens, &s.joins, &s.admissions,
	}
}

// table holds the records of one kind. Records are never changed in place.
type table[R any] struct {
	state *State
	rows  map[string]*R
	// order are the rows by key, of a state that is frozen; else nil.
	order func() []*R
}

func (t *table[R]) reset(s *State) { t.state, t.rows = s, map[string]*R{} }

func (t *table[R]) get(key string) *R { return t.rows[key] }

// put stores a record in place of the one with the same key; nil removes it.
func (t *table[R]) put(key string, row *R) {
	old := t.rows[key]
	last := &t.state.undo[len(t.state.undo)-1]
	last.back = append(last.back, func() { t.set(key, old) })
	t.set(key, row)
}

func (t *table[R]) set(key string, row *R) {
	if row == nil {
		delete(t.rows, key)
		return
	}
	t.rows[key] = row
}

// change stores a changed copy of the record with the key, which must be there.
func (t *table[R]) change(key string, change func(*R)) *R {
	row := *t.rows[key]
	change(&row)
	t.put(key, &row)
	return &row
}

// freeze has the rows put in order once, for all who ask.
func (t *table[R]) freeze() { t.order = sync.OnceValue(t.inOrder) }

// sorted returns the rows by key, in a slice that is the caller's.
func (t *table[R]) sorted() []*R {
	if t.order != nil {
		return slices.Clone(t.order())
	}
	return t.inOrder()
}

func (t *table[R]) inOrder() []*R {
	keys := slices.Sorted(maps.Keys(t.rows))
	rows := make([]*R, len(keys))
	for i, k := range keys {
		rows[i] = t.rows[k]
	}
	return rows
}

func (t *table[R]) hash(h hash.Hash) {
	_ = binary.Write(h, binary.BigEndian, uint64(len(t.rows)))
	for _, k := range slices.Sorted(maps.Keys(t.rows)) {
		b, err := json.Marshal(t.rows[k])
		if err != nil {
			// Records hold strings, numbers, times and maps of strings only: this is a mistake in records.go.
			panic(fmt.Sprintf("fleet: record cannot be encoded: %v", err))
		}
		for _, part := range [][]byte{[]byte(k), b} {
			_ = binary.Write(h, binary.BigEndian, uint64(len(part)))
			h.Write(part)
		}
	}
}

// with returns a sorted copy of ids that has id, without a copy that has not.
func with(ids []string, id string) []string {
	i, found := slices.BinarySearch(ids, id)
	if found {
		return ids
	}
	return slices.Insert(slices.Clone(ids), i, id)
}

func without[E cmp.Ordered](ids []E, id E) []E {
	i := slices.Index(ids, id)
	if i < 0 {
		return ids
	}
	return slices.Delete(slices.Clone(ids), i, i+1)
}
