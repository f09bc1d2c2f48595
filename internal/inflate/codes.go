package inflate

const (
	errUnusedLit  = "unused word for a literal or length"
	errUnusedDist = "unused word for a distance"
	errFar        = "distance reaches behind the start of the member"
)

// readCodes decodes what is there of a block, and what there is room for. Where much is there and much room
// is left, fast does it; the rest goes symbol by symbol.
func (r *Reader) readCodes() error {
	for {
		if bad := r.fast(); bad != "" {
			return r.fault(ErrData, bad)
		}
		if r.op >= r.full {
			return nil
		}
		e, err := r.lookup(r.lit[:], litBits)
		if err != nil {
			return err
		}
		switch {
		case e&isLiteral != 0:
			r.take(uint64(e & entryBits))
			r.out.bytes[r.op] = byte(e >> 16)
			r.op++
		case e&isEnd != 0:
			r.take(uint64(e & entryBits))
			r.endBlock()
			return nil
		case e&isException != 0:
			return r.fault(ErrData, errUnusedLit)
		default:
			if err := r.readMatch(r.value(e)); err != nil {
				return err
			}
		}
	}
}

func (r *Reader) readMatch(length int) error {
	e, err := r.lookup(r.dist[:], distBits)
	if err != nil {
		return err
	}
	if e&isException != 0 {
		return r.fault(ErrData, errUnusedDist)
	}
	distance := r.value(e)
	if distance > r.op-r.start {
		return r.fault(ErrData, errFar)
	}
	for range length {
		r.out.bytes[r.op] = r.out.bytes[r.op-distance]
		r.op++
	}
	return nil
}

// lookup finds the entry for the next word, and makes bits hold all that the entry uses up.
func (r *Reader) lookup(table []entry, first uint64) (entry, error) {
	for {
		// Bits that are not there count as zeros: what is found by them asks for more than there is.
		e, used := table[r.bits&(1<<first-1)], uint64(0)
		if e&isLink != 0 {
			e, used = table[uint64(e>>16)+r.bits>>first&(1<<(e>>8&15)-1)], first
		}
		if used+uint64(e&entryBits) <= r.nbits {
			r.take(used)
			return e, nil
		}
		if err := r.load(r.nbits + 1); err != nil {
			return 0, err
		}
	}
}

// value uses up an entry and gives its base with the extra bits added.
func (r *Reader) value(e entry) int {
	return int(e>>16) + int(r.take(uint64(e&entryBits))>>(e>>8&15))
}
