package inflate

import "encoding/binary"

const (
	// What one round of the fast loop looks at of in: it loads eight bytes twice at most, and before the
	// second time has used up seven at most.
	inMargin = 16

	// What one round makes: literals, the longest match, and behind it what is overwritten because matches
	// are copied in words.
	outMargin = 3 + 258 + 32
)

// fast decodes symbols of a block as long as no round can come to the end of what there is in in, and of
// what there is room for in out. It stops before what is rare, and leaves that to the caller. It returns
// what is wrong with the data.
//
// The state is in variables because the compiler would keep fields in memory. Every index is masked to lie
// within its array, which takes the place of the compiler's checks and costs less. With the margins above
// the masks change no index; if a margin were wrong, content would be, and its checksum would tell.
//
// At the top of a round bits holds at least 56 bits, and e is the entry for the first of them. That is enough
// for three literals of the first table (33 and a link's 15), or a length and a distance (20 and 28). Above the
// bits that count there may be others, as long as they are those that come next. Of nbits only the lowest
// byte means anything: whole entries are subtracted from it.
func (r *Reader) fast() (bad string) {
	const (
		inMask, outMask     = inSize - 1, outSize - 1
		litMask, distMask   = 1<<litBits - 1, 1<<distBits - 1
		litAll, distAll     = litSize - 1, distSize - 1
		literal, exceptions = uint64(isLiteral), uint64(isException)
	)
	var (
		in, out     = &r.in, &r.out.bytes
		lit, dist   = &r.lit, &r.dist
		bits, nbits = r.bits, r.nbits
		ip, op      = uint64(r.ip), uint64(r.op)
		inLast      = uint64(max(0, r.inEnd-inMargin+1))
		full        = uint64(r.full)
		start       = uint64(r.start)
	)
	if ip >= inLast || op >= full {
		return ""
	}
	bits |= binary.LittleEndian.Uint64(in[ip&inMask:ip&inMask+8]) << (nbits & 63)
	ip += 7 - nbits>>3&7
	nbits |= 56
	e := uint64(lit[bits&litMask])
	for ip < inLast && op < full {
		if e&literal != 0 {
			out[op&outMask] = byte(e >> 16)
			op++
			bits >>= e & entryBits
			nbits -= e
			e = uint64(lit[bits&litMask])
			if e&literal != 0 {
				out[op&outMask] = byte(e >> 16)
				op++
				bits >>= e & entryBits
				nbits -= e
				e = uint64(lit[bits&litMask])
				if e&literal != 0 {
					out[op&outMask] = byte(e >> 16)
					op++
					bits >>= e & entryBits
					nbits -= e
					bits |= binary.LittleEndian.Uint64(in[ip&inMask:ip&inMask+8]) << (nbits & 63)
					ip += 7 - nbits>>3&7
					nbits |= 56
					e = uint64(lit[bits&litMask])
					continue
				}
			}
			bits |= binary.LittleEndian.Uint64(in[ip&inMask:ip&inMask+8]) << (nbits & 63)
			ip += 7 - nbits>>3&7
			nbits |= 56
		}
		if e&exceptions != 0 {
			if e&uint64(isLink) == 0 {
				break
			}
			e = uint64(lit[(e>>16+bits>>litBits&(1<<(e>>8&15)-1))&litAll])
			if e&exceptions != 0 {
				break
			}
			bits >>= litBits
			nbits -= litBits
			if e&literal != 0 {
				out[op&outMask] = byte(e >> 16)
				op++
				bits >>= e & entryBits
				nbits -= e
				bits |= binary.LittleEndian.Uint64(in[ip&inMask:ip&inMask+8]) << (nbits & 63)
				ip += 7 - nbits>>3&7
				nbits |= 56
				e = uint64(lit[bits&litMask])
				continue
			}
		}
		length := e>>16 + bits&(1<<(e&entryBits)-1)>>(e>>8&15)
		bits >>= e & entryBits
		nbits -= e

		d := uint64(dist[bits&distMask])
		if d&exceptions != 0 {
			if d&uint64(isLink) != 0 {
				bits >>= distBits
				nbits -= distBits
				d = uint64(dist[(d>>16+bits&(1<<(d>>8&15)-1))&distAll])
			}
			if d&exceptions != 0 {
				bad = errUnusedDist
				break
			}
		}
		distance := d>>16 + bits&(1<<(d&entryBits)-1)>>(d>>8&15)
		bits >>= d & entryBits
		nbits -= d
		if distance > op-start {
			bad = errFar
			break
		}

		// The next entry is on its way from memory while the match is copied.
		bits |= binary.LittleEndian.Uint64(in[ip&inMask:ip&inMask+8]) << (nbits & 63)
		ip += 7 - nbits>>3&7
		nbits |= 56
		e = uint64(lit[bits&litMask])

		from, to := op-distance, op
		op += length
		switch {
		case distance >= 8:
			// Most matches end within the first words, which are copied without asking.
			v := binary.LittleEndian.Uint64(out[from&outMask : from&outMask+8])
			binary.LittleEndian.PutUint64(out[to&outMask:to&outMask+8], v)
			v = binary.LittleEndian.Uint64(out[(from+8)&outMask : (from+8)&outMask+8])
			binary.LittleEndian.PutUint64(out[(to+8)&outMask:(to+8)&outMask+8], v)
			v = binary.LittleEndian.Uint64(out[(from+16)&outMask : (from+16)&outMask+8])
			binary.LittleEndian.PutUint64(out[(to+16)&outMask:(to+16)&outMask+8], v)
			v = binary.LittleEndian.Uint64(out[(from+24)&outMask : (from+24)&outMask+8])
			binary.LittleEndian.PutUint64(out[(to+24)&outMask:(to+24)&outMask+8], v)
			for length > 32 {
				from, to, length = from+16, to+16, length-16
				v := binary.LittleEndian.Uint64(out[(from+16)&outMask : (from+16)&outMask+8])
				binary.LittleEndian.PutUint64(out[(to+16)&outMask:(to+16)&outMask+8], v)
				v = binary.LittleEndian.Uint64(out[(from+24)&outMask : (from+24)&outMask+8])
				binary.LittleEndian.PutUint64(out[(to+24)&outMask:(to+24)&outMask+8], v)
			}
		case distance == 1:
			v := uint64(out[from&outMask]) * 0x0101010101010101
			for to < op {
				binary.LittleEndian.PutUint64(out[to&outMask:to&outMask+8], v)
				to += 8
			}
		default:
			// A word overlaps itself: of each copy only the first distance bytes are right, and the next
			// one begins behind them.
			for to < op {
				v := binary.LittleEndian.Uint64(out[from&outMask : from&outMask+8])
				binary.LittleEndian.PutUint64(out[to&outMask:to&outMask+8], v)
				from += distance
				to += distance
			}
		}
	}
	r.nbits = nbits & 63
	r.bits = bits & (1<<r.nbits - 1)
	r.ip, r.op = int(ip), int(op)
	return bad
}
