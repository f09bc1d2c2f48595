package server

import (
	"context"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/pinnacehq/pinnace/internal/fleet"
)

// maxKey is the longest idempotency key of a request, in bytes.
const maxKey = 200

// checkKeys refuses requests whose idempotency key cannot be one.
func checkKeys() connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			if r, ok := req.Any().(interface{ GetIdempotencyKey() string }); ok {
				if err := checkKey(r.GetIdempotencyKey()); err != nil {
					return nil, err
				}
			}
			return next(ctx, req)
		}
	}
}

func checkKey(key string) error {
	if len(key) > maxKey || !utf8.ValidString(key) {
		return refuse(connect.CodeInvalidArgument, "an idempotency key has at most %d bytes of UTF-8, this one has %d", maxKey, len(key))
	}
	for _, r := range key {
		if !unicode.IsPrint(r) {
			return refuse(connect.CodeInvalidArgument, "idempotency key %q: %q cannot be printed", key, r)
		}
	}
	return nil
}

// requestKey makes what a caller chose into a key of the log, whose keys are one name space.
func requestKey(kind, key string) string {
	if key == "" {
		return ""
	}
	return kind + "/" + key
}

// once finds the first event of the request that was made with the same key of the log before. A handler asks before it
// looks at the state, which may be another one since: what was done cannot be refused afterwards. same tells whether
// the event is of such a request; with another one the key was taken twice.
func once[P fleet.Payload](ctx context.Context, c *control, key string, same func(P) bool) (was P, repeated bool, err error) {
	if key == "" {
		return was, false, nil
	}
	e, found, err := c.ledger.log.Find(ctx, key)
	if err != nil {
		return was, false, c.onWire(ctx, err)
	}
	if !found {
		return was, false, nil
	}
	p, err := fleet.Decode(e.Type, e.TypeVersion, e.Payload)
	if err != nil {
		return was, false, c.onWire(ctx, err)
	}
	was, ok := p.(P)
	if !ok || !same(was) {
		return was, false, errOtherRequest()
	}
	return was, true, nil
}
