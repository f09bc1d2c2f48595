package server

import (
	"context"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

func (c *control) ListSecrets(_ context.Context, req *connect.Request[pb.ListSecretsRequest]) (*connect.Response[pb.ListSecretsResponse], error) {
	out := &pb.ListSecretsResponse{}
	var err error
	c.ledger.read(func(st *fleet.State) {
		if _, err = environmentIn(st, req.Msg.GetEnvironment()); err != nil {
			return
		}
		name := func(b *fleet.Bundle) string { return b.Name }
		out.Bundles, out.NextPageToken, err = pageOf(req.Msg, st.Bundles(req.Msg.GetEnvironment()), name, func(b *fleet.Bundle) *pb.SecretBundle {
			shown := bundleProto(st, b)
			shown.Versions = nil
			return shown
		})
	})
	return connect.NewResponse(out), err
}

func (c *control) GetSecret(_ context.Context, req *connect.Request[pb.GetSecretRequest]) (*connect.Response[pb.GetSecretResponse], error) {
	out := &pb.GetSecretResponse{}
	var err error
	c.ledger.read(func(st *fleet.State) {
		var b *fleet.Bundle
		if b, err = bundleIn(st, req.Msg.GetEnvironment(), req.Msg.GetBundle()); err == nil {
			out.Bundle = bundleProto(st, b)
		}
	})
	return connect.NewResponse(out), err
}

func bundleIn(st *fleet.State, environment, name string) (*fleet.Bundle, error) {
	if _, err := environmentIn(st, environment); err != nil {
		return nil, err
	}
	b := st.Bundle(environment, name)
	if b == nil {
		return nil, refuse(connect.CodeNotFound, "environment %s has no secret bundle %q: see `pinnace secrets list -e %s`", environment, cut(name), environment)
	}
	return b, nil
}

func bundleProto(st *fleet.State, b *fleet.Bundle) *pb.SecretBundle {
	out := &pb.SecretBundle{Environment: b.Environment, Name: b.Name}
	if newest := b.Newest(); newest != nil {
		out.Newest = versionProto(newest)
	}
	for i := range slices.Backward(b.Versions) {
		out.Versions = append(out.Versions, versionProto(&b.Versions[i]))
	}
	for _, app := range st.Apps(b.Environment) {
		live := st.Deployment(app.Live)
		if live == nil || live.Count == 0 {
			continue
		}
		if use, ok := st.Release(live.Release).Manifest.Secrets[b.Name]; ok {
			out.Users = append(out.Users, &pb.SecretUser{App: app.Name, Version: live.Secrets[b.Name], OnChange: use.OnChange})
		}
	}
	return out
}

func versionProto(v *fleet.BundleVersion) *pb.SecretVersion {
	return &pb.SecretVersion{
		Version: v.Version, Keys: v.Keys, PutAt: timestamppb.New(v.PutAt), PutBy: v.PutBy, RevokedAt: timestampOrNil(v.RevokedAt), RevokedBy: v.RevokedBy,
	}
}
