package inflate

// readBlock reads the header of a block.
func (r *Reader) readBlock() error {
	if err := r.need(3); err != nil {
		return err
	}
	r.final = r.take(1) == 1
	switch r.take(2) {
	case 0:
		return r.readStored()
	case 1:
		if !r.fixed {
			build(r.lit[:], litBits, fixedLits[:], symbolEntries.lit[:])
			build(r.dist[:], distBits, fixedDists[:], symbolEntries.dist[:])
			r.fixed = true
		}
		r.state = inCodes
		return nil
	case 2:
		r.fixed = false
		r.state = inCodes
		return r.readDynamic()
	default:
		return r.fault(ErrData, "unknown kind of block")
	}
}

func (r *Reader) endBlock() {
	r.state = atBlock
	if r.final {
		r.state = atTrailer
	}
}

func (r *Reader) readStored() error {
	r.take(r.nbits % 8)
	if err := r.need(32); err != nil {
		return err
	}
	length := uint16(r.take(16))
	if uint16(r.take(16)) != ^length {
		return r.fault(ErrData, "two lengths of a stored block differ")
	}
	r.stored = int(length)
	r.state = inStored
	if length == 0 {
		// Writers use such a block to push out what they have, so it is not kept waiting either.
		r.pause = r.waits() && r.done < r.op
		r.endBlock()
	}
	return nil
}

// copyStored copies what is there of a stored block, and what there is room for.
func (r *Reader) copyStored() error {
	for ; r.nbits > 0 && r.stored > 0 && r.op < r.full; r.op++ {
		r.out.bytes[r.op] = byte(r.take(8))
		r.stored--
	}
	for r.stored > 0 && r.op < r.full {
		if r.ip == r.inEnd {
			if err := r.fill(); err != nil {
				return err
			}
		}
		n := copy(r.out.bytes[r.op:min(r.op+r.stored, r.full)], r.in[r.ip:r.inEnd])
		r.ip += n
		r.op += n
		r.stored -= n
	}
	if r.stored == 0 {
		r.endBlock()
	}
	return nil
}

var fixedLits, fixedDists = makeFixed()

func makeFixed() (lits [288]uint8, dists [32]uint8) {
	for i := range lits {
		switch {
		case i < 144:
			lits[i] = 8
		case i < 256:
			lits[i] = 9
		case i < 280:
			lits[i] = 7
		default:
			lits[i] = 8
		}
	}
	for i := range dists {
		dists[i] = 5
	}
	return lits, dists
}

// preOrder is the order in which the words of the code for lengths are described.
var preOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// readDynamic reads the codes of a block.
func (r *Reader) readDynamic() error {
	if err := r.need(14); err != nil {
		return err
	}
	lits, dists, pres := int(r.take(5))+257, int(r.take(5))+1, int(r.take(4))+4
	if lits > maxLits {
		return r.fault(ErrData, "too many symbols for literals and lengths")
	}
	if dists > maxDists {
		return r.fault(ErrData, "too many symbols for distances")
	}
	var pre [19]uint8
	for _, s := range preOrder[:pres] {
		if err := r.need(3); err != nil {
			return err
		}
		pre[s] = uint8(r.take(3))
	}
	if bad := build(r.pre[:], preBits, pre[:], symbolEntries.pre[:]); bad != "" {
		return r.fault(ErrData, bad+" for the lengths of words")
	}
	lengths := r.lengths[:lits+dists]
	if err := r.readLengths(lengths); err != nil {
		return err
	}
	if lengths[endBlock] == 0 {
		return r.fault(ErrData, "no word for the end of a block")
	}
	if bad := build(r.lit[:], litBits, lengths[:lits], symbolEntries.lit[:]); bad != "" {
		return r.fault(ErrData, bad+" for literals and lengths")
	}
	if bad := build(r.dist[:], distBits, lengths[lits:], symbolEntries.dist[:]); bad != "" {
		return r.fault(ErrData, bad+" for distances")
	}
	return nil
}

// Of the symbols 16 to 18, how often a length is repeated: at least, and the bits that add to it.
var repeats = [3]struct{ least, bits uint8 }{{3, 2}, {3, 3}, {11, 7}}

// readLengths reads the lengths of words, which are given in a code of their own.
func (r *Reader) readLengths(lengths []uint8) error {
	for i := 0; i < len(lengths); {
		e, err := r.lookup(r.pre[:], preBits)
		if err != nil {
			return err
		}
		symbol := uint8(r.value(e))
		switch {
		case e&isException != 0:
			return r.fault(ErrData, "unused word for a length of words")
		case symbol < 16:
			lengths[i] = symbol
			i++
			continue
		case symbol == 16 && i == 0:
			return r.fault(ErrData, "first length of words repeats the one before")
		}
		repeat := repeats[symbol-16]
		if err := r.need(uint64(repeat.bits)); err != nil {
			return err
		}
		n := int(repeat.least) + int(r.take(uint64(repeat.bits)))
		if n > len(lengths)-i {
			return r.fault(ErrData, "lengths of words for more symbols than there are")
		}
		length := uint8(0)
		if symbol == 16 {
			length = lengths[i-1]
		}
		for range n {
			lengths[i] = length
			i++
		}
	}
	return nil
}
