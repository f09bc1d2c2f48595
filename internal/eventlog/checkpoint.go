package eventlog

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
)

// A Checkpoint is a signed head: whoever holds the key says that the log ended so, and what its events were
// folded into. It shows what a chain cannot, that nobody wrote the log anew.
type Checkpoint struct {
	Seq  uint64
	Hash Hash
	Time int64 // Unix nanoseconds
	// StateVersion is that of the code that folded, and State the hash of what it made of the events up to
	// Seq; both are zero when nothing was folded. Two folds of the same version must agree.
	StateVersion uint32
	State        Hash
	Key          [ed25519.PublicKeySize]byte
	Signature    [ed25519.SignatureSize]byte
}

// checkpointDomain begins the bytes that are signed. It names their layout.
const checkpointDomain = "pinnace checkpoint 1\n"

// message is what is signed. All parts have a fixed length.
func (c *Checkpoint) message(id LogID) []byte {
	b := append([]byte(checkpointDomain), id[:]...)
	b = binary.BigEndian.AppendUint64(b, c.Seq)
	b = append(b, c.Hash[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Time))
	b = binary.BigEndian.AppendUint32(b, c.StateVersion)
	b = append(b, c.State[:]...)
	return append(b, c.Key[:]...)
}

// Sign fills in Key and Signature.
func (c *Checkpoint) Sign(id LogID, key ed25519.PrivateKey) {
	copy(c.Key[:], key.Public().(ed25519.PublicKey))
	copy(c.Signature[:], ed25519.Sign(key, c.message(id)))
}

// Verify says whether the checkpoint was signed by the key that it names, for the log id. Whose key that is,
// the caller must know.
func (c *Checkpoint) Verify(id LogID) error {
	if !ed25519.Verify(c.Key[:], c.message(id), c.Signature[:]) {
		return fmt.Errorf("the checkpoint of event %d is not signed by the key that it names", c.Seq)
	}
	return nil
}

// Head is what the checkpoint is of.
func (c *Checkpoint) Head() Head { return Head{Seq: c.Seq, Hash: c.Hash} }

// A Fold is the state that the caller folds from the events, as far as the log needs it: for the hash in
// checkpoints, and for the derived copy that makes a start fast.
type Fold interface {
	// Version is that of the code: it changes whenever the same events may fold into something else, or
	// when Encode writes something else.
	Version() uint32
	// Freeze gives the state as it is after the event seq, which is committed. It is called beside the hooks,
	// must be quick, and what it returns is used while the state goes on.
	Freeze() (seq uint64, state Frozen)
	// Restore replaces the state by an encoded one, before any event is replayed. When it fails, the state
	// must be the one before the first event, and everything is replayed.
	Restore(data []byte) error
}

// Frozen is a state that does not change anymore.
type Frozen interface {
	Hash() Hash
	Encode() ([]byte, error)
}

// ErrNoKey means that the log was opened without a key to sign with.
var ErrNoKey = errors.New("the event log has no key to sign checkpoints with")

// Checkpoint signs the log as it is now, stores that, and returns it. Only the log that may append can.
func (l *Log) Checkpoint(ctx context.Context) (Checkpoint, error) {
	if l.opts.Key == nil {
		return Checkpoint{}, ErrNoKey
	}
	select {
	case <-l.leads:
	default:
		return Checkpoint{}, ErrFollowing
	}
	c := Checkpoint{}
	if l.opts.Fold != nil {
		var state Frozen
		c.Seq, state = l.opts.Fold.Freeze()
		c.StateVersion, c.State = l.opts.Fold.Version(), state.Hash()
	} else {
		c.Seq = l.Head().Seq
	}
	head, err := l.headAt(ctx, c.Seq)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("sign a checkpoint: %w", err)
	}
	c.Hash, c.Time = head.Hash, l.opts.Now().UnixNano()
	c.Sign(l.id, l.opts.Key)
	if c.Seq == 0 {
		return c, nil // there is no event yet that it could be stored with
	}
	checkpointBefore.Hit()
	l.scans.RLock()
	defer l.scans.RUnlock()
	if l.closed {
		return Checkpoint{}, ErrClosed
	}
	if err := l.engine.SaveCheckpoint(ctx, c); err != nil {
		return Checkpoint{}, fmt.Errorf("store the checkpoint of event %d: %w", c.Seq, err)
	}
	checkpointAfter.Hit()
	return c, nil
}

// headAt is the head that the log had when it ended with the event seq. It waits for nothing: seq must be
// committed.
func (l *Log) headAt(ctx context.Context, seq uint64) (Head, error) {
	if seq == 0 {
		return Head{Hash: l.Genesis()}, nil
	}
	// A fold may be a moment ahead of what is published, and the store has it already.
	e, err := l.event(ctx, seq)
	if err != nil {
		return Head{}, err
	}
	return Head{Seq: e.Seq, Hash: e.Hash}, nil
}

// HeadAt is what the log's head was when seq was its last event; a *RegressionError when it never was.
func (l *Log) HeadAt(ctx context.Context, seq uint64) (Head, error) {
	if have := l.Head(); seq > have.Seq {
		return Head{}, &RegressionError{Seen: Head{Seq: seq}, Have: have}
	} else if seq == have.Seq {
		return have, nil
	}
	return l.headAt(ctx, seq)
}
