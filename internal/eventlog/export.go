package eventlog

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
)

// An export is the log as text, for who keeps or checks it elsewhere: a header line, a line for each event, and
// a line with the checkpoint that they end in. There is exactly one text for a log and a checkpoint, so any
// change of a byte shows: either it changes what is hashed or signed, or the line is not the one that we
// would have written. docs/specs/eventlog.md has the layout.

// maxExportLine bounds a line: a payload in base64, names whose every byte is escaped, and what goes around.
const maxExportLine = 2*MaxPayload + 16*MaxName

// exportHeader is the first line.
type exportHeader struct {
	Log    LogID  `json:"pinnace_event_log"`
	Format int    `json:"format"`
	Events uint64 `json:"events"`
	Head   Hash   `json:"head"`
}

// exportFormat is the version of the text.
const exportFormat = 1

type exportedEvent struct {
	Seq            uint64 `json:"seq"`
	Stream         string `json:"stream"`
	Version        uint64 `json:"version"`
	Type           string `json:"type"`
	TypeVersion    uint16 `json:"type_version"`
	Time           int64  `json:"time_unix_nano"`
	Actor          string `json:"actor"`
	IdempotencyKey string `json:"idempotency_key"`
	Payload        []byte `json:"payload_base64"`
	Hash           Hash   `json:"hash"`
}

type exportedCheckpoint struct {
	Seq          uint64   `json:"checkpoint"`
	Hash         Hash     `json:"hash"`
	Time         int64    `json:"time_unix_nano"`
	StateVersion uint32   `json:"state_version"`
	State        Hash     `json:"state"`
	Key          hexBytes `json:"key"`
	Signature    hexBytes `json:"signature"`
}

// hexBytes is bytes that are shown in hexadecimal.
type hexBytes []byte

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.AppendDecode(nil, text)
	return err
}

// Export writes the events up to the checkpoint c, which ends it. Events has to give those of the log id from
// the first on, and may give more.
func Export(w io.Writer, id LogID, c Checkpoint, events iter.Seq2[Event, error]) error {
	if err := c.Verify(id); err != nil {
		return err
	}
	out := bufio.NewWriterSize(w, 64<<10)
	line := appendHeader(nil, &exportHeader{Log: id, Format: exportFormat, Events: c.Seq, Head: c.Hash})
	head := Head{Hash: Genesis(id)}
	if _, err := out.Write(line); err != nil {
		return err
	}
	if c.Seq > 0 {
		for e, err := range events {
			if err != nil {
				return err
			}
			if e.Seq != head.Seq+1 {
				return fmt.Errorf("export: event %d comes after event %d", e.Seq, head.Seq)
			}
			line = appendEvent(line[:0], &e)
			if _, err := out.Write(line); err != nil {
				return err
			}
			if head = (Head{Seq: e.Seq, Hash: e.Hash}); head.Seq == c.Seq {
				break
			}
		}
	}
	if head != c.Head() {
		return &RegressionError{Seen: c.Head(), Have: head}
	}
	if _, err := out.Write(appendCheckpoint(line[:0], &c)); err != nil {
		return err
	}
	return out.Flush()
}

// An Exported is what VerifyExport found in an export, all of which holds.
type Exported struct {
	Log        LogID
	Checkpoint Checkpoint
}

// VerifyExport reads an export and checks the chain, and that it ends in a checkpoint that is signed by the key
// that it names; whether that is the key that one knows, the caller has to compare. seen, which may be nil, is
// called with each event once it is verified. A *VerifyError names the event that is not what it should be.
func VerifyExport(ctx context.Context, r io.Reader, seen func(*Event) error) (Exported, error) {
	lines := bufio.NewReaderSize(r, 64<<10)
	v := exportVerifier{}
	for {
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			return v.finish()
		}
		if err != nil {
			return Exported{}, fmt.Errorf("line %d of the export: %w", v.lines+1, err)
		}
		if err := ctx.Err(); err != nil {
			return Exported{}, err
		}
		e, err := v.line(line)
		if err != nil {
			return Exported{}, err
		}
		if e != nil && seen != nil {
			if err := seen(e); err != nil {
				return Exported{}, err
			}
		}
	}
}

// ErrNotExport means that what was read is not an export at all.
var ErrNotExport = errors.New("this is not an export of an event log")

// readLine reads a line with its end, of bounded length. The last one must have an end too.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxExportLine:
			return nil, errors.New("it is longer than any event is")
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, errors.New("it has no end: the export was cut")
		default:
			return nil, err
		}
	}
}

// An exportVerifier takes an export line by line. It can be copied, to go on from the same line in two ways, as
// long as only one of them goes on past the next event that it accepts.
type exportVerifier struct {
	lines  int
	header exportHeader
	chain  *verifier
	end    *Checkpoint
	buf    []byte
}

// line takes the next line, with its end, and returns its event once that is verified; nil for other lines.
func (v *exportVerifier) line(line []byte) (*Event, error) {
	n := v.lines + 1
	var e *Event
	var err error
	switch {
	case n == 1:
		err = v.first(line)
	case v.end != nil:
		err = errors.New("there is more after the checkpoint that ends it")
	case v.chain.head.Seq == v.header.Events:
		err = v.last(line)
	default:
		e, err = v.event(line)
	}
	if err != nil {
		var broken *VerifyError
		if errors.Is(err, ErrNotExport) || errors.As(err, &broken) {
			return nil, err
		}
		return nil, fmt.Errorf("line %d of the export: %w", n, err)
	}
	v.lines = n
	return e, nil
}

// finish is called after the last line.
func (v *exportVerifier) finish() (Exported, error) {
	switch {
	case v.lines == 0:
		return Exported{}, ErrNotExport
	case v.end == nil:
		return Exported{}, fmt.Errorf("the export was cut after line %d: it should have %d events, and end in a signed checkpoint", v.lines, v.header.Events)
	}
	return Exported{Log: v.header.Log, Checkpoint: *v.end}, nil
}

// errAnotherText means that a line says the same in other bytes.
var errAnotherText = errors.New("these are not the bytes that were exported")

func (v *exportVerifier) first(line []byte) error {
	var h exportHeader
	if json.Unmarshal(line, &h) != nil || h.Log == (LogID{}) {
		return ErrNotExport
	}
	if h.Format != exportFormat {
		return fmt.Errorf("the export has format %d, this pinnace knows %d", h.Format, exportFormat)
	}
	if v.buf = appendHeader(v.buf[:0], &h); !bytes.Equal(v.buf, line) {
		return errAnotherText
	}
	v.header, v.chain = h, newVerifier(Genesis(h.Log))
	return nil
}

func (v *exportVerifier) event(line []byte) (*Event, error) {
	var x exportedEvent
	if err := json.Unmarshal(line, &x); err != nil {
		return nil, err
	}
	e := &Event{
		Seq: x.Seq, Stream: x.Stream, Version: x.Version, Type: x.Type, TypeVersion: x.TypeVersion,
		Time: x.Time, Actor: x.Actor, IdempotencyKey: x.IdempotencyKey, Payload: x.Payload, Hash: x.Hash,
	}
	if v.buf = appendEvent(v.buf[:0], e); !bytes.Equal(v.buf, line) {
		return nil, errAnotherText
	}
	if err := v.chain.next(e); err != nil {
		return nil, err
	}
	return e, nil
}

func (v *exportVerifier) last(line []byte) error {
	var x exportedCheckpoint
	if err := json.Unmarshal(line, &x); err != nil {
		return err
	}
	c := Checkpoint{Seq: x.Seq, Hash: x.Hash, Time: x.Time, StateVersion: x.StateVersion, State: x.State}
	if len(x.Key) != ed25519.PublicKeySize || len(x.Signature) != ed25519.SignatureSize {
		return errors.New("the checkpoint's key or signature has another length")
	}
	c.Key, c.Signature = [32]byte(x.Key), [64]byte(x.Signature)
	if v.buf = appendCheckpoint(v.buf[:0], &c); !bytes.Equal(v.buf, line) {
		return errAnotherText
	}
	if v.header.Head != v.chain.head.Hash || c.Head() != v.chain.head {
		return &VerifyError{Seq: v.chain.head.Seq, Reason: fmt.Sprintf("its hash is %s, but the checkpoint is of event %d %s", v.chain.head.Hash, c.Seq, c.Hash)}
	}
	if err := c.Verify(v.header.Log); err != nil {
		return err
	}
	v.end = &c
	return nil
}

func appendHeader(b []byte, h *exportHeader) []byte {
	b = append(b, `{"pinnace_event_log":"`...)
	b = hex.AppendEncode(b, h.Log[:])
	b = append(b, `","format":`...)
	b = strconv.AppendInt(b, int64(h.Format), 10)
	b = append(b, `,"events":`...)
	b = strconv.AppendUint(b, h.Events, 10)
	b = append(b, `,"head":"`...)
	b = hex.AppendEncode(b, h.Head[:])
	return append(b, "\"}\n"...)
}

func appendEvent(b []byte, e *Event) []byte {
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, e.Seq, 10)
	b = appendText(append(b, `,"stream":`...), e.Stream)
	b = append(b, `,"version":`...)
	b = strconv.AppendUint(b, e.Version, 10)
	b = appendText(append(b, `,"type":`...), e.Type)
	b = append(b, `,"type_version":`...)
	b = strconv.AppendUint(b, uint64(e.TypeVersion), 10)
	b = append(b, `,"time_unix_nano":`...)
	b = strconv.AppendInt(b, e.Time, 10)
	b = appendText(append(b, `,"actor":`...), e.Actor)
	b = appendText(append(b, `,"idempotency_key":`...), e.IdempotencyKey)
	b = append(b, `,"payload_base64":"`...)
	b = base64.StdEncoding.AppendEncode(b, e.Payload)
	b = append(b, `","hash":"`...)
	b = hex.AppendEncode(b, e.Hash[:])
	return append(b, "\"}\n"...)
}

func appendCheckpoint(b []byte, c *Checkpoint) []byte {
	b = append(b, `{"checkpoint":`...)
	b = strconv.AppendUint(b, c.Seq, 10)
	b = append(b, `,"hash":"`...)
	b = hex.AppendEncode(b, c.Hash[:])
	b = append(b, `","time_unix_nano":`...)
	b = strconv.AppendInt(b, c.Time, 10)
	b = append(b, `,"state_version":`...)
	b = strconv.AppendUint(b, uint64(c.StateVersion), 10)
	b = append(b, `,"state":"`...)
	b = hex.AppendEncode(b, c.State[:])
	b = append(b, `","key":"`...)
	b = hex.AppendEncode(b, c.Key[:])
	b = append(b, `","signature":"`...)
	b = hex.AppendEncode(b, c.Signature[:])
	return append(b, "\"}\n"...)
}

// appendText appends a JSON string in which nothing is escaped but the quote and the backslash: other characters
// that JSON would want escaped can't be in an event.
func appendText(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}
