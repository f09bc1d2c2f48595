package server

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

// maxBundleBytes bounds the keys and values of a bundle. It is the guest's.
const maxBundleBytes = 256 << 10

// secretsFor are the versions that a deployment of the manifest gets now: the newest ones. Everything that is missing is
// said at once.
func secretsFor(st *fleet.State, environment string, m *manifest.Manifest) (map[string]uint64, error) {
	if len(m.Secrets) == 0 {
		return nil, nil
	}
	var missing []release.MissingSecret
	for _, s := range supplyOf(st, st.Environment(environment)).lacks(m).GetMissingSecrets() {
		missing = append(missing, release.MissingSecret{Bundle: s.GetBundle(), Absent: s.GetAbsent(), Keys: s.GetKeys()})
	}
	if len(missing) > 0 {
		problems := release.CheckEnvironment(m, release.Environment{Name: environment, Secrets: missing, Count: 1})
		return nil, refuse(connect.CodeFailedPrecondition, "environment %s lacks secrets that %s needs:\n%s\nhint: pinnace secrets put -e %s %s", environment, m.Name, list(problems.Errors()), environment, missing[0].Bundle)
	}
	versions := map[string]uint64{}
	for name := range m.Secrets {
		versions[name] = st.Bundle(environment, name).Newest().Version
	}
	return versions, nil
}

// proposedSecrets are the versions that a proposal has: the newest ones, or those of the deployment record that a rollback
// restores, when none of them was revoked.
func proposedSecrets(st *fleet.State, p *proposal, newest bool) (map[string]uint64, error) {
	if p.target == nil || newest {
		return secretsFor(st, p.environment, p.release.Manifest)
	}
	for _, name := range slices.Sorted(maps.Keys(p.target.Secrets)) {
		b := st.Bundle(p.environment, name)
		if b == nil || b.Version(p.target.Secrets[name]) == nil { // of an earlier environment of the name
			return nil, refuse(connect.CodeFailedPrecondition, "deployment %s cannot be gone back to as it was: its secrets %s are gone. With --secrets=now it gets the newest", p.target.ID, name)
		}
		v := b.Version(p.target.Secrets[name])
		if !v.RevokedAt.IsZero() {
			gone := &fleet.SecretRevokedError{Environment: b.Environment, Bundle: name, Version: v.Version, By: v.RevokedBy, At: v.RevokedAt}
			return nil, refuse(connect.CodeFailedPrecondition, "deployment %s cannot be gone back to as it was: %w. With --secrets=now it gets the newest", p.target.ID, gone)
		}
		if now := b.Newest().Version; now != v.Version {
			p.older = append(p.older, fmt.Sprintf("secrets.%s goes back to version %d; the next deployment gets version %d again", name, v.Version, now))
		}
	}
	return maps.Clone(p.target.Secrets), nil
}

// supplyOf is what an environment has: variables, and of its bundles the newest versions.
func supplyOf(st *fleet.State, env *fleet.Environment) supply {
	s := supply{vars: map[string]bool{}, bundles: map[string]map[string]bool{}}
	for name := range env.Vars {
		s.vars[name] = true
	}
	for _, b := range st.Bundles(env.Name) {
		newest := b.Newest()
		if newest == nil {
			continue
		}
		keys := map[string]bool{}
		for _, key := range newest.Keys {
			keys[key] = true
		}
		s.bundles[b.Name] = keys
	}
	return s
}

func (c *control) PutSecret(ctx context.Context, req *connect.Request[pb.PutSecretRequest]) (*connect.Response[pb.PutSecretResponse], error) {
	// One at a time: each is made from the newest.
	c.putting.Lock()
	defer c.putting.Unlock()
	key := requestKey("secret", req.Msg.GetIdempotencyKey())
	was, repeated, err := once(ctx, c, key, func(p *fleet.SecretPut) bool {
		return p.Environment == req.Msg.GetEnvironment() && p.Bundle == req.Msg.GetBundle()
	})
	if err != nil {
		return nil, err
	}
	if repeated {
		out := &pb.PutSecretResponse{Version: was.Version}
		out.Deployments, err = c.startedBySecret(req.Msg)
		return connect.NewResponse(out), err
	}
	p, err := c.prepareSecret(ctx, req.Msg)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	out := &pb.PutSecretResponse{Version: p.event.Version, Unchanged: p.unchanged, Pending: p.pending}
	if !p.unchanged {
		p.event.Sealed, err = c.seal(ctx, sealedText{
			Kind: sealedBundle, Environment: p.event.Environment, Name: p.event.Bundle, Version: p.event.Version, Values: p.values,
		})
		if err != nil {
			return nil, c.onWire(ctx, err)
		}
		p.event.Recipient = c.opts.Keys.Recipient()
		if err := c.ledger.append(ctx, actorOf(ctx), key, append([]fleet.Payload{p.event}, p.rollouts...)...); err != nil {
			if isRejected(err) { // otherwise it may be in the log after all
				c.removeSealed(ctx, p.event.Sealed)
			}
			return nil, c.onWire(ctx, err)
		}
	}
	c.ledger.read(func(st *fleet.State) {
		for _, id := range p.ids {
			out.Deployments = append(out.Deployments, deploymentProto(st.Deployment(id)))
		}
	})
	return connect.NewResponse(out), nil
}

// startedBySecret are the deployments that a request started which is made again.
func (c *control) startedBySecret(req *pb.PutSecretRequest) (started []*pb.Deployment, err error) {
	c.ledger.read(func(st *fleet.State) {
		for _, app := range st.Apps(req.GetEnvironment()) {
			var d *fleet.Deployment
			if _, d, err = c.secretDeployment(req, app.Name); err != nil {
				return
			}
			if d != nil {
				started = append(started, deploymentProto(d))
			}
		}
	})
	return started, err
}

// secretDeployment is the id of the deployment that brings a secret to an app.
func (c *control) secretDeployment(req *pb.PutSecretRequest, app string) (id string, repeated *fleet.Deployment, err error) {
	return c.deploymentID("secret/"+req.GetBundle()+"/"+app, req.GetEnvironment(), req.GetIdempotencyKey())
}

// preparedSecret is a version that could be put.
type preparedSecret struct {
	event     *fleet.SecretPut // without where it is sealed
	values    map[string][]byte
	unchanged bool
	rollouts  []fleet.Payload
	ids       []string // of the deployments among them
	pending   []string
}

func (c *control) prepareSecret(ctx context.Context, req *pb.PutSecretRequest) (*preparedSecret, error) {
	if c.opts.Keys == nil || c.opts.Secrets == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errNoStore)
	}
	env, err := c.environment(req.GetEnvironment())
	if err != nil {
		return nil, err
	}
	if err := c.checkKeys(); err != nil {
		return nil, err
	}
	var known *fleet.Bundle
	p := &preparedSecret{}
	c.ledger.read(func(st *fleet.State) {
		known, p.event = st.Bundle(env.Name, req.GetBundle()), st.NextSecret(env.Name, req.GetBundle())
	})
	var newest *fleet.BundleVersion
	have := map[string][]byte{}
	if known != nil {
		if newest = known.Newest(); newest != nil {
			if have, err = c.unsealBundle(ctx, known, newest); err != nil && !req.GetReplace() {
				c.log.ErrorContext(ctx, "a secret cannot be opened", "error", err)
				return nil, refuse(connect.CodeFailedPrecondition, "%w. Put the whole bundle anew with --replace, or restore the store of secrets", err)
			}
		}
	}
	if base := req.GetBaseVersion(); base != 0 && (newest == nil || newest.Version != base) {
		return nil, refuse(connect.CodeAborted, "bundle %s has changed since version %d: look at it again", req.GetBundle(), base)
	}
	if p.values, err = merged(have, req); err != nil {
		return nil, err
	}
	p.event.Keys = slices.Sorted(maps.Keys(p.values))
	if err := fleet.CheckBundle(p.event.Bundle, p.event.Keys); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	if err := checkBundleSize(p.event.Bundle, p.values); err != nil {
		return nil, err
	}
	if newest != nil && maps.EqualFunc(have, p.values, bytes.Equal) {
		p.unchanged, p.event.Version = true, newest.Version
	}
	if !p.unchanged {
		c.ledger.read(func(st *fleet.State) { err = c.spreadSecret(st, req, p) })
	}
	return p, err
}

// merged are the values of a bundle after a request.
func merged(have map[string][]byte, req *pb.PutSecretRequest) (map[string][]byte, error) {
	if len(req.GetSet())+len(req.GetUnset()) == 0 {
		return nil, refuse(connect.CodeInvalidArgument, "bundle %s: no key was given", cut(req.GetBundle()))
	}
	values := map[string][]byte{}
	if !req.GetReplace() {
		maps.Copy(values, have)
	}
	for _, key := range req.GetUnset() {
		if _, ok := req.GetSet()[key]; ok {
			return nil, refuse(connect.CodeInvalidArgument, "bundle %s: the key %s is to be set and unset", req.GetBundle(), cut(key))
		}
		if _, ok := values[key]; !ok {
			return nil, refuse(connect.CodeNotFound, "bundle %s has no key %s", req.GetBundle(), cut(key))
		}
		delete(values, key)
	}
	for key, value := range req.GetSet() {
		values[key] = value
		if value == nil {
			values[key] = []byte{}
		}
	}
	return values, nil
}

func checkBundleSize(name string, values map[string][]byte) error {
	size := 0
	for key, value := range values {
		size += len(key) + len(value)
	}
	if size > maxBundleBytes {
		return refuse(connect.CodeInvalidArgument, "bundle %s has %d bytes with its keys, and %d are the most: secrets are held in memory, bring large files in the image or in a volume", name, size, maxBundleBytes)
	}
	return nil
}

// spreadSecret finds what brings a new version to the live apps that use the bundle: by a rollout, or in place.
func (c *control) spreadSecret(st *fleet.State, req *pb.PutSecretRequest, p *preparedSecret) error {
	for _, app := range st.Apps(p.event.Environment) {
		live := st.Deployment(app.Live)
		if live == nil || live.Count == 0 {
			continue
		}
		m := st.Release(live.Release).Manifest
		use, ok := m.Secrets[p.event.Bundle]
		if !ok {
			continue
		}
		if missing := lacking(use, p.event.Keys); len(missing) > 0 {
			return refuse(connect.CodeFailedPrecondition, "%s is live in %s and needs %s of bundle %s: deploy a release without first", app.Name, app.Environment, strings.Join(missing, ", "), p.event.Bundle)
		}
		if req.GetNoDeploy() {
			p.pending = append(p.pending, app.Name)
			continue
		}
		if active := st.Deployment(app.Active); active != nil {
			return &fleet.BusyError{Active: active}
		}
		if use.OnChange == manifest.OnChangeRollout {
			if err := c.reachVolumes(st, app.Environment, m, live.Count, c.now()); err != nil {
				return unchangedFor(app, err)
			}
		}
		id, _, err := c.secretDeployment(req, app.Name)
		if err != nil {
			return err
		}
		d := &fleet.DeploymentStarted{
			Deployment: id, Environment: app.Environment, App: app.Name, Kind: fleet.KindSettings, Release: string(live.Release), Count: live.Count,
			Vars: maps.Clone(live.Vars), Secrets: maps.Clone(live.Secrets), Previous: live.ID,
		}
		d.Secrets[p.event.Bundle] = p.event.Version
		p.ids, p.rollouts = append(p.ids, id), append(p.rollouts, d)
		if use.OnChange != manifest.OnChangeRollout {
			d.Kind = fleet.KindSecrets
		}
		if use.OnChange == manifest.OnChangeNone {
			// Nothing happens to what runs, so there is nothing to wait for.
			p.rollouts = append(p.rollouts, &fleet.DeploymentFinished{Deployment: id, Outcome: fleet.Succeeded})
		}
	}
	return nil
}

// lacking are the keys that a manifest needs of a bundle and that are not among its keys, which are sorted.
func lacking(use manifest.Secret, keys []string) []string {
	needed := slices.Concat(use.Require, use.Env)
	slices.Sort(needed)
	return slices.DeleteFunc(slices.Compact(needed), func(key string) bool {
		_, found := slices.BinarySearch(keys, key)
		return found
	})
}
