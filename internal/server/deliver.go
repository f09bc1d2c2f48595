package server

import (
	"context"
	"slices"
	"strings"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// assignedSecrets are the bundles of an instance without their values, which deliver puts in.
func (s *Server) assignedSecrets(st *fleet.State, i *fleet.Instance) []*pb.AssignedSecret {
	var out []*pb.AssignedSecret
	versions, known := s.secretsOf(st, i)
	if !known {
		return nil
	}
	for name := range st.Release(i.Release).Manifest.Secrets {
		if version := versions[name]; version != 0 {
			out = append(out, &pb.AssignedSecret{Bundle: name, Version: version})
		}
	}
	slices.SortFunc(out, func(a, b *pb.AssignedSecret) int { return strings.Compare(a.GetBundle(), b.GetBundle()) })
	return out
}

// assignedLogins are the logins that an instance's image may be pulled with. In place of the password there is where it
// is sealed, so that another password makes another set; deliver puts it in.
func assignedLogins(st *fleet.State, i *fleet.Instance) []*pb.AssignedLogin {
	var out []*pb.AssignedLogin
	seen := map[string]bool{}
	for _, source := range st.Release(i.Release).Sources {
		registry, _, _ := strings.Cut(source, "/")
		registry = strings.ToLower(registry)
		if l := st.Login(i.Environment, registryName(registry)); l != nil && !seen[registry] {
			seen[registry] = true
			out = append(out, &pb.AssignedLogin{Registry: registry, Username: l.Username, Password: []byte(l.Sealed)})
		}
	}
	return out
}

// deliver puts the values of secrets and logins into a set that is about to be sent, and nowhere else. What cannot be
// opened is left out, and it tells so: the agent waits for the secrets, and somebody has to look here.
func (s *Server) deliver(ctx context.Context, set *pb.WatchAssignmentsResponse) (complete bool) {
	complete = true
	opened := map[string]map[string][]byte{} // by where it is sealed
	open := func(digest string, want sealedText) map[string][]byte {
		values, ok := opened[digest]
		if ok {
			return values
		}
		values, err := s.unseal(ctx, digest, want)
		if err != nil {
			complete = false
			if ctx.Err() == nil {
				s.log.ErrorContext(ctx, "a host does not get what it needs", "what", want.Kind, "environment", want.Environment, "name", want.Name, "version", want.Version, "error", err)
			}
		}
		opened[digest] = values
		return values
	}
	set.Assignments = slices.DeleteFunc(set.GetAssignments(), func(asg *pb.Assignment) bool {
		return asg.GetOnce() && !s.deliverRun(asg, open)
	})
	for _, asg := range set.GetAssignments() {
		asg.Secrets = slices.DeleteFunc(asg.GetSecrets(), func(a *pb.AssignedSecret) bool {
			digest := s.sealedAs(asg.GetEnvironment(), a)
			if digest == "" {
				return true
			}
			a.Values = open(digest, sealedText{Kind: sealedBundle, Environment: asg.GetEnvironment(), Name: a.GetBundle(), Version: a.GetVersion()})
			return a.Values == nil
		})
		asg.Logins = slices.DeleteFunc(asg.GetLogins(), func(a *pb.AssignedLogin) bool {
			digest := string(a.GetPassword())
			a.Password = nil
			environment, ok := s.loginSealedAs(asg.GetEnvironment(), registryName(a.GetRegistry()), digest)
			if !ok {
				return true // it has changed: another set is on its way
			}
			a.Password = open(digest, sealedText{Kind: sealedLogin, Environment: environment, Name: registryName(a.GetRegistry())})[loginPassword]
			return a.Password == nil
		})
	}
	return complete
}

// sealedAs is where a version of a bundle is sealed; empty when it was revoked since.
func (s *Server) sealedAs(environment string, a *pb.AssignedSecret) (digest string) {
	s.ledger.read(func(st *fleet.State) {
		if b := st.Bundle(environment, a.GetBundle()); b != nil {
			if v := b.Version(a.GetVersion()); v != nil && v.RevokedAt.IsZero() {
				digest = v.Sealed
			}
		}
	})
	return digest
}

// loginSealedAs is whose login it is that an environment uses, when it is still sealed there.
func (s *Server) loginSealedAs(environment, registry, digest string) (owner string, ok bool) {
	s.ledger.read(func(st *fleet.State) {
		if l := st.Login(environment, registry); l != nil {
			owner, ok = l.Environment, l.Sealed == digest
		}
	})
	return owner, ok
}
