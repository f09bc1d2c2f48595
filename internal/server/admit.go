package server

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// How long join tokens are good for.
const (
	joinLife    = time.Hour
	maxJoinLife = fleet.MaxJoinLife
)

func (c *control) CreateJoinToken(ctx context.Context, req *connect.Request[pb.CreateJoinTokenRequest]) (*connect.Response[pb.CreateJoinTokenResponse], error) {
	life, err := expiry(req.Msg.GetExpiresInSeconds(), maxJoinLife)
	if err != nil {
		return nil, err
	}
	if life == 0 {
		life = joinLife
	}
	if host := req.Msg.GetHost(); host != "" && !fleet.ValidHost(host) {
		return nil, refuse(connect.CodeInvalidArgument, "host id %q: want letters, digits and . _ - between them, at most 64", cut(host))
	}
	secret, id, err := c.secret(ctx, identity.JoinPrefix, "join", req.Msg.GetIdempotencyKey())
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	var join *fleet.Join
	find := func() { c.ledger.read(func(st *fleet.State) { join = st.JoinByHash(secret.Hash()) }) }
	if find(); join == nil {
		err := c.ledger.append(ctx, actorOf(ctx), "", &fleet.JoinAllowed{
			Join: id, Hash: secret.Hash(), Host: req.Msg.GetHost(), ExpiresUnix: c.now().Add(life).Unix(),
		})
		if find(); join == nil {
			if isRejected(err) {
				return nil, refuse(connect.CodeFailedPrecondition, "%w", errors.Unwrap(err))
			}
			return nil, c.onWire(ctx, err)
		}
	}
	return connect.NewResponse(&pb.CreateJoinTokenResponse{
		Secret: secret.WithPin(c.opts.Authority.Fingerprint()), ExpiresAt: timestampOrNil(join.ExpiresAt),
	}), nil
}

func (c *control) RevokeHost(ctx context.Context, req *connect.Request[pb.RevokeHostRequest]) (*connect.Response[pb.RevokeHostResponse], error) {
	err := c.ledger.append(ctx, actorOf(ctx), "", &fleet.HostRevoked{Host: req.Msg.GetHost()})
	if err != nil && !errors.Is(err, fleet.ErrNotFound) { // what it has not it does not have
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.RevokeHostResponse{}), nil
}

// badJoin says nothing of why: whoever guesses is to learn nothing.
const badJoin = "the join token is not known, was used, has expired, or is for another host: ask for a new one (pinnace host join-token)"

func (a *agents) Admit(ctx context.Context, req *connect.Request[pb.AdmitRequest]) (*connect.Response[pb.AdmitResponse], error) {
	// Who follows may not know of a join token yet, and must not send a host away for good.
	if !a.leads() {
		return nil, a.onWire(ctx, eventlog.ErrFollowing)
	}
	m := req.Msg
	secret, _, err := identity.ParseSecret(m.GetToken())
	if err != nil {
		return nil, refuse(connect.CodeUnauthenticated, badJoin)
	}
	csr, err := identity.ParseRequest(m.GetRequest())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	if !fleet.ValidHost(m.GetHost()) {
		return nil, refuse(connect.CodeInvalidArgument, "host id %q: want letters, digits and . _ - between them, at most 64", cut(m.GetHost()))
	}
	sum := identity.KeyHash(csr)
	key := hex.EncodeToString(sum[:])
	// With the same key again, it is the host whose answer was lost.
	repeated := func() (had *fleet.Admission) {
		a.ledger.read(func(st *fleet.State) { had = st.Admission(m.GetHost()) })
		if had != nil && had.Join == secret.Hash() && had.Key == key {
			return had
		}
		return nil
	}
	admission := repeated()
	if admission == nil {
		if err := a.useJoin(ctx, secret.Hash(), m.GetHost(), key); err != nil {
			return nil, err
		}
		if admission = repeated(); admission == nil {
			return nil, refuse(connect.CodeAborted, "host %s was revoked, or joined again, at the same time", m.GetHost())
		}
	}
	cert, err := a.opts.Authority.SignHost(csr, identity.Host{ID: admission.Host, Admission: admission.ID}, a.now())
	if err != nil {
		return nil, a.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.AdmitResponse{Certificate: cert, Authority: a.opts.Authority.Certificate().Raw}), nil
}

// useJoin uses a join token up. Of several at the same time the log takes one.
func (a *agents) useJoin(ctx context.Context, hash, host, key string) error {
	var join *fleet.Join
	a.ledger.read(func(st *fleet.State) { join = st.JoinByHash(hash) })
	if join == nil || !a.now().Before(join.ExpiresAt) || join.Host != "" && join.Host != host {
		return refuse(connect.CodeUnauthenticated, badJoin)
	}
	id, err := a.newID("adm")
	if err != nil {
		return a.onWire(ctx, err)
	}
	err = a.ledger.append(ctx, "host/"+host, "", &fleet.HostAdmitted{Host: host, Join: join.ID, Key: key, Admission: id})
	switch {
	case errors.Is(err, fleet.ErrExists):
		return refuse(connect.CodeAlreadyExists, "a host %s is known already: choose another --host-id, or ask for a token for that host (pinnace host join-token %s)", host, host)
	case errors.Is(err, fleet.ErrNotFound):
		return refuse(connect.CodeUnauthenticated, badJoin)
	}
	return a.onWire(ctx, err)
}

func (a *agents) Renew(ctx context.Context, req *connect.Request[pb.RenewRequest]) (*connect.Response[pb.RenewResponse], error) {
	csr, err := identity.ParseRequest(req.Msg.GetRequest())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	cert, err := a.opts.Authority.SignHost(csr, hostOf(ctx), a.now())
	if err != nil {
		return nil, a.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.RenewResponse{Certificate: cert}), nil
}
