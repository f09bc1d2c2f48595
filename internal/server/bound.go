package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

// maxBound is how many idempotency keys are remembered with their requests.
const maxBound = 16 << 10

// boundKeys remember which request came with which idempotency key, so that a key that is used again for something else
// is refused instead of being answered with what became of the first request.
//
// They are of one process and of its last maxBound requests that were done. What is older, or came to another server, is
// compared with what the event log says became of it: see once and deploymentID.
type boundKeys struct {
	salt [32]byte // requests have secrets in them, whose digests must say nothing to others

	mu     sync.Mutex
	of     map[boundKey][sha256.Size]byte // guarded by mu
	oldest []boundKey                     // guarded by mu; those in of, in the order in which they came
}

// boundKey is a key of a caller: another one may use the same.
type boundKey struct{ token, key string }

func newBoundKeys() *boundKeys {
	b := &boundKeys{of: map[boundKey][sha256.Size]byte{}}
	_, _ = rand.Read(b.salt[:]) // documented never to fail
	return b
}

// fits tells whether a key came with this request before, or with none.
func (b *boundKeys) fits(key boundKey, request [sha256.Size]byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	was, known := b.of[key]
	return !known || was == request
}

// bind remembers that a request was done.
func (b *boundKeys) bind(key boundKey, request [sha256.Size]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.of[key]; known {
		return
	}
	b.of[key] = request
	if b.oldest = append(b.oldest, key); len(b.oldest) > maxBound {
		delete(b.of, b.oldest[0])
		b.oldest = b.oldest[1:]
	}
}

// check refuses requests whose key came with another one. A request that was refused binds nothing: its caller may mend
// it.
func (b *boundKeys) check() connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			r, ok := req.Any().(interface {
				proto.Message
				GetIdempotencyKey() string
			})
			if !ok || r.GetIdempotencyKey() == "" {
				return next(ctx, req)
			}
			key, request := boundKey{callerOf(ctx).ID, r.GetIdempotencyKey()}, b.digest(req.Spec().Procedure, r)
			if !b.fits(key, request) {
				return nil, errOtherRequest()
			}
			res, err := next(ctx, req)
			if err == nil {
				b.bind(key, request)
			}
			return res, err
		}
	}
}

func errOtherRequest() error {
	return refuse(connect.CodeInvalidArgument, "the idempotency key was used for another request: each request needs a key of its own")
}

// digest is that of what is asked for.
func (b *boundKeys) digest(procedure string, m proto.Message) [sha256.Size]byte {
	// It is compared with others of this process only, so that the order of the fields may be any that does not change.
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		text = nil // it came from the wire: this cannot be, and would refuse nothing
	}
	h := sha256.New()
	h.Write(b.salt[:])
	_ = binary.Write(h, binary.BigEndian, uint64(len(procedure))) // a hash never fails to write
	h.Write([]byte(procedure))
	h.Write(text)
	return [sha256.Size]byte(h.Sum(nil))
}
