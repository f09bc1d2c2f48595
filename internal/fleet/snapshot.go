package fleet

import (
	"encoding/json"
	"fmt"
	"maps"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// StateVersion is that of the fold and of the records: it goes up whenever the same events may fold into a
// state with another hash. TestStateVersion fails when that was forgotten.
const StateVersion = 12

// snapshot is a state as bytes. What follows from the rest is not in it.
type snapshot struct {
	Seq          uint64
	Hash         []byte
	Environments map[string]*Environment
	Apps         map[string]*App
	Hosts        map[string]*Host
	Bookings     map[string]*Booking
	Releases     map[string]*Release
	Deployments  map[string]*Deployment
	Instances    map[string]*Instance
	Bundles      map[string]*Bundle
	Logins       map[string]*RegistryLogin
	Past         map[string]*Past
	Volumes      map[string]*Volume
	Tokens       map[string]*Token
	Joins        map[string]*Join
	Admissions   map[string]*Admission
}

// Encode gives the state as bytes for DecodeState. They are a copy that can be made anew from the log, not
// something to keep.
func (s *State) Encode() ([]byte, error) {
	hash := s.Hash()
	return json.Marshal(snapshot{
		Seq: s.seq, Hash: hash[:], Environments: s.environments.rows, Apps: s.apps.rows, Hosts: s.hosts.rows, Bookings: s.bookings.rows,
		Releases: s.releases.rows, Deployments: s.deployments.rows, Instances: s.instances.rows,
		Bundles: s.bundles.rows, Logins: s.logins.rows, Past: s.past.rows,
		Volumes: s.volumes.rows,
		Tokens:  s.tokens.rows, Joins: s.joins.rows, Admissions: s.admissions.rows,
	})
}

// DecodeState reads what Encode gave. A state that is not the one that was encoded, in all that its hash covers,
// is an error.
func DecodeState(b []byte) (*State, error) {
	var snap snapshot
	if err := json.Unmarshal(b, &snap); err != nil {
		return nil, fmt.Errorf("decode state: %w", err)
	}
	s := New()
	s.seq = snap.Seq
	for _, r := range snap.Releases {
		m, err := manifest.ParseCanonical([]byte(r.Canonical))
		if err != nil {
			return nil, fmt.Errorf("decode state: manifest of release %s: %w", r.ID, err)
		}
		r.Manifest = m
	}
	fill(&s.environments, snap.Environments)
	fill(&s.apps, snap.Apps)
	fill(&s.hosts, snap.Hosts)
	fill(&s.bookings, snap.Bookings)
	fill(&s.releases, snap.Releases)
	fill(&s.deployments, snap.Deployments)
	fill(&s.instances, snap.Instances)
	fill(&s.bundles, snap.Bundles)
	fill(&s.logins, snap.Logins)
	fill(&s.past, snap.Past)
	fill(&s.volumes, snap.Volumes)
	for _, v := range snap.Volumes {
		if v.Attached() {
			s.mounts.rows[v.mountKey()] = v
		}
	}
	fill(&s.tokens, snap.Tokens)
	fill(&s.joins, snap.Joins)
	fill(&s.admissions, snap.Admissions)
	for id, i := range snap.Instances {
		if i.Run != nil && !i.Final {
			s.runs.rows[id] = i
		}
	}
	for id, d := range snap.Deployments {
		if d.Active() {
			s.active.rows[id] = d
		}
	}
	if hash := s.Hash(); string(hash[:]) != string(snap.Hash) {
		return nil, fmt.Errorf("decode state: its hash is %x, and was %x", hash, snap.Hash)
	}
	return s, nil
}

func fill[R any](t *table[R], rows map[string]*R) {
	maps.Copy(t.rows, rows)
}
