package fleet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

// Each of these returns nil when there is no such record.

// Environment returns the environment with the name.
func (s *State) Environment(name string) *Environment { return s.environments.get(name) }

// App returns the app of an environment; it is there from its first deployment on.
func (s *State) App(environment, name string) *App { return s.apps.get(appKey(environment, name)) }

// Host returns the host with the id.
func (s *State) Host(id string) *Host { return s.hosts.get(id) }

// Booking returns what is placed on a host.
func (s *State) Booking(host string) *Booking { return s.bookings.get(host) }

// Release returns the release with the id.
func (s *State) Release(id release.ID) *Release { return s.releases.get(string(id)) }

// Deployment returns the deployment with the id.
func (s *State) Deployment(id string) *Deployment { return s.deployments.get(id) }

// Instance returns the instance with the id. One that ended long ago is forgotten.
func (s *State) Instance(id string) *Instance { return s.instances.get(id) }

// Environments returns all environments by name.
func (s *State) Environments() []*Environment { return s.environments.sorted() }

// Hosts returns all hosts by id.
func (s *State) Hosts() []*Host { return s.hosts.sorted() }

// Apps returns the apps of an environment by name; of all environments when it is empty.
func (s *State) Apps(environment string) []*App {
	return slices.DeleteFunc(s.apps.sorted(), func(a *App) bool { return environment != "" && a.Environment != environment })
}

// ActiveDeployments returns the deployments that are under way, by id.
func (s *State) ActiveDeployments() []*Deployment { return s.active.sorted() }

// Deployments returns the deployments to an environment, of one app or of all when it is empty, newest first.
func (s *State) Deployments(environment, app string) []*Deployment {
	var found []*Deployment
	for _, d := range s.deployments.rows {
		if d.Environment == environment && (app == "" || d.App == app) {
			found = append(found, d)
		}
	}
	slices.SortFunc(found, func(a, b *Deployment) int { return cmp.Or(b.StartedAt.Compare(a.StartedAt), cmp.Compare(a.ID, b.ID)) })
	return found
}

// Releases returns the releases of an app, newest first; of all apps when it is empty.
func (s *State) Releases(app string) []*Release {
	var found []*Release
	for _, r := range s.releases.rows {
		if app == "" || r.App == app {
			found = append(found, r)
		}
	}
	slices.SortFunc(found, func(a, b *Release) int { return cmp.Compare(b.Seq, a.Seq) })
	return found
}

// ReleasesByPrefix returns the releases whose hexadecimal id begins with prefix, by id.
func (s *State) ReleasesByPrefix(prefix string) []*Release {
	return byPrefix(&s.releases, "sha256:"+prefix)
}

// InstancesByPrefix returns the instances whose id begins with prefix, by id.
func (s *State) InstancesByPrefix(prefix string) []*Instance { return byPrefix(&s.instances, prefix) }

func byPrefix[R any](t *table[R], prefix string) []*R {
	var keys []string
	for k := range t.rows {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	rows := make([]*R, len(keys))
	for i, k := range keys {
		rows[i] = t.rows[k]
	}
	return rows
}

// Instances returns the instances of an app that run or are to run, by ordinal and id.
func (s *State) Instances(environment, app string) []*Instance {
	if a := s.App(environment, app); a != nil {
		return s.resolve(a.Instances)
	}
	return nil
}

// EndedInstances returns the instances of an app that ended and are remembered, by ordinal and id.
func (s *State) EndedInstances(environment, app string) []*Instance {
	if a := s.App(environment, app); a != nil {
		return s.resolve(a.Ended)
	}
	return nil
}

// InstancesOn returns the instances of a host that run or are to run, by ordinal and id.
func (s *State) InstancesOn(host string) []*Instance {
	if b := s.Booking(host); b != nil {
		return s.resolve(b.Instances)
	}
	return nil
}

func (s *State) resolve(ids []string) []*Instance {
	found := make([]*Instance, len(ids))
	for i, id := range ids {
		found[i] = s.instances.get(id)
	}
	slices.SortFunc(found, func(a, b *Instance) int {
		return cmp.Or(cmp.Compare(a.Ordinal, b.Ordinal), cmp.Compare(a.ID, b.ID))
	})
	return found
}

// ReleasesInForce returns the releases of which the app serves or is about to serve: that of the live
// deployment, of the active one, and of every instance that runs. The newest wish comes first.
func (s *State) ReleasesInForce(app *App) []*Release {
	var found []*Release
	add := func(id release.ID) {
		if r := s.Release(id); r != nil && !slices.Contains(found, r) {
			found = append(found, r)
		}
	}
	for _, id := range []string{app.Active, app.Live} {
		if d := s.Deployment(id); d != nil && d.Count > 0 {
			add(d.Release)
		}
	}
	for _, i := range s.resolve(app.Instances) {
		add(i.Release)
	}
	return found
}

// PortConflict returns a *PortConflictError when a release wants a public port or a host name for itself in environment
// that another app, there or elsewhere, holds, and a *NoRouteError when there is no host name for a port that needs one.
func (s *State) PortConflict(environment string, r *Release) error {
	return s.routesFit(s.environments.get(environment), r)
}

// RollbackTarget returns the deployment record that a rollback of the app restores. With id empty that is
// the live one when the last deployment left a mix behind, else the last good one before the live one.
func (s *State) RollbackTarget(app *App, id string) (*Deployment, error) {
	live := s.Deployment(app.Live)
	if id != "" {
		d := s.Deployment(id)
		switch {
		case d == nil || d.Environment != app.Environment || d.App != app.Name:
			return nil, fmt.Errorf("deployment %q of %s in %s: %w", id, app.Name, app.Environment, ErrNotFound)
		case d.State != Succeeded || d.Count == 0:
			return nil, fmt.Errorf("deployment %s is a %s that is %s; only a deployment that succeeded can be gone back to", d.ID, d.Kind, d.State)
		}
		return d, nil
	}
	if latest := s.Deployment(app.Latest); latest != nil && latest.State == Mixed && live != nil && live.Count > 0 {
		return live, nil
	}
	if live != nil {
		for d := s.Deployment(live.Before); d != nil; d = s.Deployment(d.Before) {
			if d.State == Succeeded && d.Count > 0 && (live.Count == 0 || d.Release != live.Release) {
				return d, nil
			}
		}
	}
	return nil, fmt.Errorf("an earlier deployment of %s in %s that succeeded: %w", app.Name, app.Environment, ErrNotFound)
}

// MaxApps is how many apps one environment can ever have had: each keeps its virtual address.
const MaxApps = 254 * 256

// VirtualAddresses returns the app's addresses within its environment. They are the same on every host and
// never change.
func (a *App) VirtualAddresses() (v4, v6 netip.Addr) {
	v4 = netip.AddrFrom4([4]byte{10, 101, byte(a.Index / 254), byte(a.Index%254 + 1)})
	n := a.Index + 1
	v6 = netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x70, 3: 0x69, 4: 0x6e, 5: 0x6e, 6: 0x01, 7: 0x01, 14: byte(n >> 8), 15: byte(n)})
	return v4, v6
}

func sortedPorts(m *manifest.Manifest) []string {
	names := make([]string, 0, len(m.Ports))
	for name := range m.Ports {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
