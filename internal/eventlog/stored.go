package eventlog

import (
	"fmt"
	"strconv"
)

// What engines read back is checked here, the same for all: a store that was damaged or changed by hand must be refused,
// and never be cut to fit.

// StoredFormat is the version of the layout of all engines: columns, and how hashes are computed.
const StoredFormat = 1

// StoredID is the ID of a log whose store says that of itself. The values are those of "format", "log_id" and "genesis".
func StoredID(format, id, genesis []byte) (LogID, error) {
	v, err := strconv.Atoi(string(format))
	switch {
	case err != nil:
		return LogID{}, fmt.Errorf("meta: format %q is not a number", format)
	case v < 1:
		return LogID{}, fmt.Errorf("meta: there never was a format %q", format)
	case v > StoredFormat:
		return LogID{}, fmt.Errorf("the log has format %d, written by a newer pinnace; this one knows formats up to %d: run the newer version", v, StoredFormat)
	case len(id) != len(LogID{}):
		return LogID{}, fmt.Errorf("meta: log_id has %d bytes, not %d", len(id), len(LogID{}))
	}
	if want := Genesis(LogID(id)); string(genesis) != string(want[:]) {
		return LogID{}, fmt.Errorf("meta: genesis is %x, but log_id %x gives %s", genesis, id, want)
	}
	return LogID(id), nil
}

// StoredHead is the head of which a store says that.
func StoredHead(seq int64, hash []byte) (Head, error) {
	if seq < 1 || len(hash) != len(Hash{}) {
		return Head{}, fmt.Errorf("event %d: hash of %d bytes", seq, len(hash))
	}
	return Head{Seq: uint64(seq), Hash: Hash(hash)}, nil
}

// StoredEvent completes an event with the columns that a store keeps in types of its own.
func StoredEvent(e Event, seq, version, typeVersion int64, hash []byte) (Event, error) {
	if seq < 1 || version < 1 || typeVersion < 0 || typeVersion > 0xffff {
		return e, fmt.Errorf("seq %d, ver %d or tv %d is out of range", seq, version, typeVersion)
	}
	if len(hash) != len(e.Hash) || len(e.Payload) > MaxPayload {
		return e, fmt.Errorf("event %d: hash of %d bytes or payload of %d bytes, the most is %d", seq, len(hash), len(e.Payload), MaxPayload)
	}
	e.Seq, e.Version, e.TypeVersion, e.Hash = uint64(seq), uint64(version), uint16(typeVersion), Hash(hash)
	if e.Payload == nil {
		e.Payload = []byte{}
	}
	return e, nil
}

// StoredCheckpoint is the checkpoint of which a store says that.
func StoredCheckpoint(seq, at, stateVersion int64, hash, state, key, signature []byte) (c Checkpoint, err error) {
	if seq < 1 || stateVersion < 0 || stateVersion > 1<<32-1 ||
		len(hash) != len(c.Hash) || len(state) != len(c.State) || len(key) != len(c.Key) || len(signature) != len(c.Signature) {
		return c, fmt.Errorf("the checkpoint of event %d is damaged", seq)
	}
	c.Seq, c.Time, c.StateVersion = uint64(seq), at, uint32(stateVersion)
	c.Hash, c.State, c.Key, c.Signature = Hash(hash), Hash(state), [32]byte(key), [64]byte(signature)
	return c, nil
}
