package manifest

import (
	"maps"
	"slices"
)

// How the rows of the table reach the named tables, and the tables that may be absent.

func portElements() *elements {
	return &elements{
		names: func(m *Manifest) []string { return slices.Sorted(maps.Keys(m.Ports)) },
		enter: func(s *scope, name string) { p := s.m.Ports[name]; s.port = &p },
		store: func(s *scope) { put(&s.m.Ports, s.name, *s.port) },
	}
}

func secretElements() *elements {
	return &elements{
		names: func(m *Manifest) []string { return slices.Sorted(maps.Keys(m.Secrets)) },
		enter: func(s *scope, name string) { p := s.m.Secrets[name]; s.secret = &p },
		store: func(s *scope) { put(&s.m.Secrets, s.name, *s.secret) },
	}
}

func volumeElements() *elements {
	return &elements{
		names: func(m *Manifest) []string { return slices.Sorted(maps.Keys(m.Volumes)) },
		enter: func(s *scope, name string) { p := s.m.Volumes[name]; s.volume = &p },
		store: func(s *scope) { put(&s.m.Volumes, s.name, *s.volume) },
	}
}

func put[V any](m *map[string]V, name string, v V) {
	if *m == nil {
		*m = make(map[string]V)
	}
	(*m)[name] = v
}

// probePresence finds the probe for the rows below its table, making it first when make is set.
func probePresence(at func(*Manifest) **Probe) func(*scope, bool) bool {
	return func(s *scope, create bool) bool {
		p := at(s.m)
		if create && *p == nil {
			*p = new(Probe)
		}
		s.probe = *p
		return *p != nil
	}
}

func beforePresence(s *scope, create bool) bool {
	if create && s.m.Rollout.Before == nil {
		s.m.Rollout.Before = new(Before)
	}
	return s.m.Rollout.Before != nil
}
