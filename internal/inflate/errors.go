package inflate

import (
	"errors"
	"fmt"
)

var (
	// ErrHeader means that a member does not begin with a gzip header, or with one that is damaged. After
	// the first member this is what garbage behind the stream gives.
	ErrHeader = errors.New("no valid gzip header")

	// ErrData means that compressed data makes no sense.
	ErrData = errors.New("compressed data is invalid")

	// ErrChecksum means that the decoded content is not what its member's trailer says: checksum or length.
	ErrChecksum = errors.New("content does not fit its checksum")
)

// An Error tells where and why a stream is not valid gzip. It wraps ErrHeader, ErrData, ErrChecksum, or,
// when the stream ends too early, io.ErrUnexpectedEOF. What the source of a Reader returns is never made
// an Error.
type Error struct {
	Offset int64 // in the compressed stream, of the first byte that was not used up when the fault was found
	Member int   // which one, from 1
	Reason string
	Err    error
}

func (e *Error) Error() string {
	at := fmt.Sprintf("gzip: byte %d", e.Offset)
	if e.Member > 1 {
		at += fmt.Sprintf(", member %d", e.Member)
	}
	if e.Reason == "" {
		return fmt.Sprintf("%s: %v", at, e.Err)
	}
	return fmt.Sprintf("%s: %v: %s", at, e.Err, e.Reason)
}

func (e *Error) Unwrap() error { return e.Err }
