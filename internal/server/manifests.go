package server

import (
	"context"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// sentManifest is a manifest in a request, with what the CLI made of it.
type sentManifest interface {
	GetManifest() []byte
	GetManifestHash() string
	GetClientVersion() string
}

// readManifest parses the text and compares the hash: a manifest that the CLI reads in another way is refused,
// with the versions of both, as one of them knows something that the other does not.
func (s *Server) readManifest(req sentManifest) (*manifest.Manifest, error) {
	m, problems := manifest.Parse(req.GetManifest())
	claimed := req.GetManifestHash()
	switch {
	case m == nil && claimed == "":
		return nil, refuse(connect.CodeInvalidArgument, "the manifest is not valid: %s", list(problems.Errors()))
	case m == nil:
		return nil, refuse(connect.CodeInvalidArgument, "the CLI (%s) takes the manifest, and this server (%s) does not: %s\nhint: use the same version of both",
			versionOf(req.GetClientVersion()), versionOf(s.opts.Version), list(problems.Errors()))
	case claimed != string(m.Hash()):
		return nil, refuse(connect.CodeInvalidArgument, "the manifest hash differs: this server (%s) computes %s, the CLI (%s) said %q\nhint: use the same version of both, as they read the manifest differently",
			versionOf(s.opts.Version), m.Hash(), versionOf(req.GetClientVersion()), claimed)
	}
	return m, nil
}

// versionOf shows a version that somebody claims.
func versionOf(s string) string {
	const most = 64
	if s == "" || len(s) > most || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "of an unknown version"
	}
	return "version " + s
}

// CheckManifest looks at the state only: there is nothing to undo.
func (c *control) CheckManifest(ctx context.Context, req *connect.Request[pb.CheckManifestRequest]) (*connect.Response[pb.CheckManifestResponse], error) {
	m, err := c.readManifest(req.Msg)
	if err != nil {
		return nil, err
	}
	if n := len(req.Msg.GetArchitectures()); n > maxPlatforms {
		return nil, refuse(connect.CodeInvalidArgument, "%d architectures of the image, the most is %d", n, maxPlatforms)
	}
	var out *pb.CheckManifestResponse
	c.ledger.read(func(st *fleet.State) {
		var env *fleet.Environment
		if env, err = environmentIn(st, req.Msg.GetEnvironment()); err != nil {
			return
		}
		out = supplyOf(st, env).lacks(m)
		out.Count = 1 // what the first deployment has
		if app := st.App(env.Name, m.Name); app != nil {
			out.Count = uint32(app.Count)
		}
		_, err := c.placesFor(st, env.Name, m, candidates(st, m, req.Msg.GetArchitectures()), firstOrdinals(1), c.now())
		out.HasRoom = err == nil
		if err != nil {
			out.NoRoom = err.Error()
		}
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(out), nil
}

// candidates are the architectures that an instance may run on: those of the image, or of any host as long as there
// is no image, that the manifest allows.
func candidates(st *fleet.State, m *manifest.Manifest, image []string) []string {
	switch {
	case len(image) == 0 && len(m.Arch) > 0:
		return m.Arch
	case len(image) == 0:
		var all []string
		for _, h := range st.Hosts() {
			all = append(all, h.Architecture)
		}
		return all
	case len(m.Arch) == 0:
		return image
	}
	return slices.DeleteFunc(slices.Clone(image), func(a string) bool { return !slices.Contains(m.Arch, a) })
}

// supply is what an environment has for its workloads: variables, and the keys of each bundle.
type supply struct {
	vars    map[string]bool
	bundles map[string]map[string]bool
}

// lacks compares the supply with what a manifest needs.
func (s supply) lacks(m *manifest.Manifest) *pb.CheckManifestResponse {
	out := &pb.CheckManifestResponse{}
	for _, name := range m.Vars {
		if !s.vars[name] {
			out.MissingVars = append(out.MissingVars, name)
		}
	}
	for _, bundle := range slices.Sorted(maps.Keys(m.Secrets)) {
		have, exists := s.bundles[bundle]
		missing := &pb.MissingSecret{Bundle: bundle, Absent: !exists}
		needed := slices.Concat(m.Secrets[bundle].Require, m.Secrets[bundle].Env)
		slices.Sort(needed)
		for _, key := range slices.Compact(needed) {
			if !have[key] {
				missing.Keys = append(missing.Keys, key)
			}
		}
		if missing.Absent || len(missing.Keys) > 0 {
			out.MissingSecrets = append(out.MissingSecrets, missing)
		}
	}
	return out
}
