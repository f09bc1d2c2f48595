package server

import (
	"cmp"
	"fmt"
)

// position is where a line is in the journal of a deployment. Lines that events tell are told again, in the same order,
// by every server that reads the log; those that reports tell are known only to the server that heard them.
type position struct {
	// seq is the event that told the line, or the last line before it that one did, and n its number among that event's
	// lines, from 1.
	seq uint64
	n   uint32
	// report numbers what reports told since, from 1; 0 for a line of the event. boot is the server that heard them.
	report uint32
	boot   string
}

// next is the position behind p of a line that the event seq tells, or a report to the server boot when it is 0.
func (p position) next(seq uint64, boot string) position {
	switch seq {
	case 0:
		return position{seq: p.seq, n: p.n, report: p.report + 1, boot: boot}
	case p.seq:
		return position{seq: seq, n: p.n + 1, boot: boot}
	default:
		return position{seq: seq, n: 1, boot: boot}
	}
}

// after tells whether a line at p is new to somebody who has the one at q. Two servers number reports differently, so
// that some may be new that are not.
func (p position) after(q position) bool {
	if c := cmp.Or(cmp.Compare(p.seq, q.seq), cmp.Compare(p.n, q.n)); c != 0 {
		return c > 0
	}
	if p.report > 0 && p.boot != q.boot {
		return true
	}
	return p.report > q.report
}

func (p position) String() string { return fmt.Sprintf("%d.%d.%d.%s", p.seq, p.n, p.report, p.boot) }

// parsePosition reads what String wrote.
func parsePosition(text string) (p position, ok bool) {
	_, err := fmt.Sscanf(text, "%d.%d.%d.%s", &p.seq, &p.n, &p.report, &p.boot)
	return p, err == nil && p.String() == text
}
