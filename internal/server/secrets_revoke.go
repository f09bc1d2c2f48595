package server

import (
	"context"
	"slices"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

func (c *control) RevokeSecret(ctx context.Context, req *connect.Request[pb.RevokeSecretRequest]) (*connect.Response[pb.RevokeSecretResponse], error) {
	out := &pb.RevokeSecretResponse{}
	var sealed []string
	key := requestKey("revoke", req.Msg.GetIdempotencyKey())
	was, repeated, err := once(ctx, c, key, func(p *fleet.SecretRevoked) bool {
		return p.Environment == req.Msg.GetEnvironment() && p.Bundle == req.Msg.GetBundle()
	})
	if err != nil {
		return nil, err
	}
	if repeated {
		return connect.NewResponse(&pb.RevokeSecretResponse{Revoked: was.Versions}), nil
	}
	c.ledger.read(func(st *fleet.State) {
		var b *fleet.Bundle
		if b, err = bundleIn(st, req.Msg.GetEnvironment(), req.Msg.GetBundle()); err != nil {
			return
		}
		numbers := slices.Clone(req.Msg.GetVersions())
		slices.Sort(numbers)
		for _, number := range slices.Compact(numbers) {
			v := b.Version(number)
			if v == nil {
				err = refuse(connect.CodeNotFound, "bundle %s has no version %d: see `pinnace secrets versions %s`", b.Name, number, b.Name)
				return
			}
			if v.RevokedAt.IsZero() {
				out.Revoked, sealed = append(out.Revoked, number), append(sealed, v.Sealed)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if len(req.Msg.GetVersions()) == 0 {
		return nil, refuse(connect.CodeInvalidArgument, "which version is to be revoked?")
	}
	if len(out.Revoked) == 0 {
		return connect.NewResponse(out), nil
	}
	err = c.ledger.append(ctx, actorOf(ctx), key, &fleet.SecretRevoked{Environment: req.Msg.GetEnvironment(), Bundle: req.Msg.GetBundle(), Versions: out.Revoked})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	if c.opts.Secrets != nil {
		c.removeSealed(ctx, sealed...)
	}
	return connect.NewResponse(out), nil
}
