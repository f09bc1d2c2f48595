package main

import (
	"bufio"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

// An event, as section 1 of the specification has it; only what the rest needs.
type event struct {
	key  string
	hash string // hexadecimal
}

// The lines of section 5.
type (
	header struct {
		Log    string `json:"pinnace_event_log"`
		Format int    `json:"format"`
		Events uint64 `json:"events"`
		Head   string `json:"head"`
	}
	eventLine struct {
		Seq     uint64 `json:"seq"`
		Stream  string `json:"stream"`
		Version uint64 `json:"version"`
		Type    string `json:"type"`
		TV      uint64 `json:"type_version"`
		At      int64  `json:"time_unix_nano"`
		Actor   string `json:"actor"`
		Idem    string `json:"idempotency_key"`
		Data    string `json:"payload_base64"`
		Hash    string `json:"hash"`
	}
	checkpointLine struct {
		Seq          uint64 `json:"checkpoint"`
		Hash         string `json:"hash"`
		At           int64  `json:"time_unix_nano"`
		StateVersion uint32 `json:"state_version"`
		State        string `json:"state"`
		Key          string `json:"key"`
		Signature    string `json:"signature"`
	}
)

// readExport checks sections 2 to 5, and gives the events; the one with seq n is at n-1.
func readExport(path string) ([]event, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	line := func(into any) error {
		text, err := in.ReadString('\n')
		if err != nil {
			return fmt.Errorf("a line has no end: %w", err)
		}
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		return d.Decode(into)
	}
	var h header
	if err := line(&h); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	id, err := hex.DecodeString(h.Log)
	if err != nil || len(id) != 16 || h.Format != 1 {
		return nil, errors.New("header: not one of format 1")
	}
	genesis := sha256.Sum256(append([]byte("pinnace event log 1\n"), id...))
	c := chain{before: genesis[:], versions: map[string]uint64{}}
	var events []event
	for n := uint64(1); n <= h.Events; n++ {
		var l eventLine
		if err := line(&l); err != nil {
			return nil, fmt.Errorf("event %d: %w", n, err)
		}
		if err := c.check(n, &l); err != nil {
			return nil, fmt.Errorf("event %d: %w", n, err)
		}
		events = append(events, event{key: l.Idem, hash: l.Hash})
	}
	if hex.EncodeToString(c.before) != h.Head {
		return nil, errors.New("the head is not the hash of the last event")
	}
	var p checkpointLine
	if err := line(&p); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something after the checkpoint")
	}
	return events, p.check(id, h)
}

type chain struct {
	before   []byte
	at       int64
	versions map[string]uint64
}

// check is section 3.
func (c *chain) check(n uint64, l *eventLine) error {
	data, err := base64.StdEncoding.Strict().DecodeString(l.Data)
	if err != nil {
		return err
	}
	b := append([]byte{}, c.before...)
	field := func(f []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	number := func(v uint64) { field(binary.BigEndian.AppendUint64(nil, v)) }
	number(l.Seq)
	field([]byte(l.Stream))
	number(l.Version)
	field([]byte(l.Type))
	number(l.TV)
	number(uint64(l.At))
	field([]byte(l.Actor))
	field([]byte(l.Idem))
	field(data)
	sum := sha256.Sum256(b)
	switch {
	case l.Seq != n:
		return fmt.Errorf("a gap: seq %d comes here", l.Seq)
	case hex.EncodeToString(sum[:]) != l.Hash:
		return fmt.Errorf("the chain is broken: computed %x, stored %s", sum, l.Hash)
	case l.Version != c.versions[l.Stream]+1:
		return fmt.Errorf("version %d of stream %q follows %d", l.Version, l.Stream, c.versions[l.Stream])
	case l.At <= c.at:
		return fmt.Errorf("time %d is not after %d", l.At, c.at)
	case l.TV > 65535 || len(data) > 1048576 || !name(l.Stream, 1) || !name(l.Type, 1) || !name(l.Actor, 0) || !name(l.Idem, 0):
		return errors.New("a field is out of bounds")
	}
	c.before, c.at, c.versions[l.Stream] = sum[:], l.At, l.Version
	return nil
}

func name(s string, least int) bool {
	return len(s) >= least && len(s) <= 512 && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// check is section 4.
func (p *checkpointLine) check(id []byte, h header) error {
	key, keyErr := hex.DecodeString(p.Key)
	sig, sigErr := hex.DecodeString(p.Signature)
	hash, hashErr := hex.DecodeString(p.Hash)
	state, stateErr := hex.DecodeString(p.State)
	if err := errors.Join(keyErr, sigErr, hashErr, stateErr); err != nil || len(key) != ed25519.PublicKeySize || len(hash) != 32 || len(state) != 32 {
		return fmt.Errorf("checkpoint: a field is malformed: %w", err)
	}
	m := append([]byte("pinnace checkpoint 1\n"), id...)
	m = binary.BigEndian.AppendUint64(m, p.Seq)
	m = append(m, hash...)
	m = binary.BigEndian.AppendUint64(m, uint64(p.At))
	m = binary.BigEndian.AppendUint32(m, p.StateVersion)
	m = append(append(m, state...), key...)
	if !ed25519.Verify(key, m, sig) {
		return errors.New("checkpoint: the signature is wrong")
	}
	if p.Seq != h.Events || p.Hash != h.Head {
		return errors.New("checkpoint: it is not of the last event")
	}
	return nil
}
