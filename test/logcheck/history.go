package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// A line of a history, section 10 of the specification: one of call, end and saw is set.
type historyLine struct {
	Call   string `json:"call"`
	Events uint64 `json:"events"`

	End    string `json:"end"`
	Result string `json:"result"`
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`

	Saw  uint64 `json:"saw"`
	Hash string `json:"hash"`
}

// A request is all calls with one idempotency key.
type request struct {
	events  uint64
	open    int // calls that have not ended
	unknown bool
	refused bool
	done    bool // it was acknowledged, without a word of where
	ok      *historyLine
}

type history struct {
	// others is set when the log has events that no client of the histories asked for.
	others   bool
	requests map[string]*request
	seen     map[uint64]string

	acknowledged, refused, unknown, unknownStored int
}

func newHistory() *history {
	return &history{requests: map[string]*request{}, seen: map[uint64]string{}}
}

// read takes the history of one client, who makes one call after the other.
func (h *history) read(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var last uint64 // of the newest request that was acknowledged
	for in := bufio.NewReader(bytes.NewReader(b)); ; {
		text, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // a client that was killed in the middle of a line has not been told more
		}
		if err != nil {
			return err
		}
		var l historyLine
		if err := json.Unmarshal(text, &l); err != nil {
			return err
		}
		switch {
		case l.Call != "":
			r := h.requests[l.Call]
			if r == nil {
				r = &request{events: l.Events}
				h.requests[l.Call] = r
			}
			if r.events != l.Events {
				return fmt.Errorf("the client used the key %s for two requests", l.Call)
			}
			r.open++
		case l.End != "":
			r := h.requests[l.End]
			if r == nil || r.open == 0 {
				return fmt.Errorf("an answer to %s, which was not asked", l.End)
			}
			r.open--
			again := r.ok != nil
			if err := r.answer(l); err != nil {
				return err
			}
			if l.Result == "ok" && !again {
				// What a client was told later lies behind what it was told before.
				if l.Last < last {
					return fmt.Errorf("%s was put at event %d, after the client knew of event %d", l.End, l.Last, last)
				}
				last = l.Last
			}
		case l.Saw != 0:
			if was, ok := h.seen[l.Saw]; ok && was != l.Hash {
				return fmt.Errorf("two readers saw different events %d", l.Saw)
			}
			h.seen[l.Saw] = l.Hash
		default:
			return fmt.Errorf("a line that says nothing: %s", text)
		}
	}
}

func (r *request) answer(l historyLine) error {
	switch l.Result {
	case "ok":
		if r.ok != nil && (r.ok.First != l.First || r.ok.Last != l.Last || r.ok.Hash != l.Hash) {
			return fmt.Errorf("%s was acknowledged twice, as events %d to %d and as %d to %d", l.End, r.ok.First, r.ok.Last, l.First, l.Last)
		}
		if l.Last-l.First+1 != r.events {
			return fmt.Errorf("%s has %d events and was acknowledged as %d to %d", l.End, r.events, l.First, l.Last)
		}
		r.ok = &l
	case "done":
		r.done = true
	case "unknown":
		r.unknown = true
	case "refused":
		r.refused = true
	default:
		return fmt.Errorf("%s: unknown result %q", l.End, l.Result)
	}
	return nil
}

// compare holds what clients were told against the log.
func (h *history) compare(log []event) error {
	where := map[string][]uint64{}
	for i, e := range log {
		if h.others && h.requests[e.key] == nil {
			continue
		}
		if e.key == "" {
			return fmt.Errorf("event %d has no key, so no client asked for it", i+1)
		}
		if h.requests[e.key] == nil {
			return fmt.Errorf("event %d has the key %s, which no client used", i+1, e.key)
		}
		where[e.key] = append(where[e.key], uint64(i+1))
	}
	for key, r := range h.requests {
		if err := h.compareRequest(key, r, where[key], log); err != nil {
			return err
		}
	}
	for seq, hash := range h.seen {
		if seq > uint64(len(log)) || log[seq-1].hash != hash {
			return fmt.Errorf("a reader saw event %d with the hash %s, which the log does not have", seq, hash)
		}
	}
	return nil
}

func (h *history) compareRequest(key string, r *request, at []uint64, log []event) error {
	stored := len(at) > 0
	if stored && (uint64(len(at)) != r.events || at[len(at)-1]-at[0]+1 != r.events) {
		return fmt.Errorf("%s asked for %d events and has %d: %v", key, r.events, len(at), at)
	}
	switch {
	case r.ok != nil:
		h.acknowledged++
		if !stored {
			return fmt.Errorf("LOST: %s was acknowledged as events %d to %d, and is not in the log", key, r.ok.First, r.ok.Last)
		}
		if at[0] != r.ok.First || log[r.ok.Last-1].hash != r.ok.Hash {
			return fmt.Errorf("%s was acknowledged as event %d to %d %s, and is at %v", key, r.ok.First, r.ok.Last, r.ok.Hash, at)
		}
	case r.done:
		h.acknowledged++
		if !stored {
			return fmt.Errorf("LOST: %s was acknowledged, and is not in the log", key)
		}
	case r.unknown || r.open > 0:
		h.unknown++
		if stored {
			h.unknownStored++
		}
	default:
		h.refused++
		if stored {
			return fmt.Errorf("%s was refused, and is in the log at %v", key, at)
		}
	}
	return nil
}
