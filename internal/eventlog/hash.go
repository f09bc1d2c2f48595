package eventlog

import (
	"crypto/sha256"
	"encoding/binary"
)

// genesisDomain is what the genesis hash of a log is made from, followed by the log's ID. It names the
// layout: another layout gets another text, so that hashes of two layouts can never be mixed up.
const genesisDomain = "pinnace event log 1\n"

// Genesis is the hash before the first event of the log id.
func Genesis(id LogID) Hash {
	return sha256.Sum256(append([]byte(genesisDomain), id[:]...))
}

// ChainHash is the hash that e must have when the event before it has the hash prev. e.Hash is not read.
func ChainHash(prev Hash, e *Event) Hash {
	var c chain
	return c.hash(prev, e)
}

// A chain computes hashes, keeping its buffer between them.
type chain struct{ buf []byte }

// hash is ChainHash. The bytes are those of docs/specs/eventlog.md: the previous hash, then nine fields,
// each behind its length, so that no two different events have the same bytes.
func (c *chain) hash(prev Hash, e *Event) Hash {
	b := append(c.buf[:0], prev[:]...)
	b = appendUint(b, e.Seq)
	b = appendField(b, e.Stream)
	b = appendUint(b, e.Version)
	b = appendField(b, e.Type)
	b = appendUint(b, uint64(e.TypeVersion))
	b = appendUint(b, uint64(e.Time))
	b = appendField(b, e.Actor)
	b = appendField(b, e.IdempotencyKey)
	b = appendField(b, e.Payload)
	c.buf = b
	return sha256.Sum256(b)
}

func appendUint(b []byte, v uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, 8)
	return binary.BigEndian.AppendUint64(b, v)
}

func appendField[T string | []byte](b []byte, v T) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
	return append(b, v...)
}
