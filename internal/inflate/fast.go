package inflate

import "encoding/binary"

const (
	// The most compressed bytes that one round of the fast loop looks at: eight, when up to seven were
	// used up before.
	inMargin = 16

	// The most content that one round makes: six literals and the longest match, and behind it what is
	// overwritten because matches are copied in whole words.
	outMargin = 6 + 258 + 32
)

// fast decodes symbols of a block as long as no round can come to the end of what there is in in and out.
// It stops before what is rare, which the caller decodes. It returns what is wrong with the data.
//
// The loop keeps copies of fields in variables, as the compiler cannot. All indexes are masked to lie within
// their arrays, which takes the place of the compiler's checks: the masks change nothing as long as the
// margins are right, and if they were not, content would be wrong and its checksum tell.
//
// At the top of a round bits holds at least 56 that count. The lowest byte of nbits is how many, the rest of
// it is of no meaning; and bits may hold bits above those that count, as long as they are the next ones.
func (r *Reader) fast() string {
	var (
		in, out   = &r.in, &r.out
		lit, dist = &r.lit, &r.dist
		bits      = r.bits
		nbits     = r.nbits
		ip, op    = uint64(r.ip), uint64(r.op)
		inLast    = uint64(max(0, r.inEnd-inMargin+1))
		full      = uint64(r.full)
		start     = uint64(r.start)
		bad       string
	)
	const (
		inMask, outMask         = inSize - 1, outSize - 1
		litMask, distMask       = 1<<litBits - 1, 1<<distBits - 1
		litAllMask, distAllMask = litSize - 1, distSize - 1
	)
	if ip >= inLast || op >= full {
		return ""
	}
	bits |= binary.LittleEndian.Uint64(in[ip&inMask:ip&inMask+8]) << (nbits & 63)
	ip += 7 - nbits>>3&7
	nbits |= 56
	e := uint64(lit[bits&litMask])
	for ip < inLast && op < full {
		if e&uint64(isLiteral) != 0 {
			binary.LittleEndian.PutUint16(out[op&outMask:op&outMask+2], uint16(e>>16))
			op += e >> 8 & 3
			bits >>= e & entryBits
			nbits -= e & entryBits
			e = uint64(lit[bits&litMask])
			if e&uint64(isLiteral) != 0 {
				binary.LittleEndian.PutUint16(out[op&outMask:op&outMask+2], uint16(e>>16))
				op += e >> 8 & 3
				bits >>= e & entryBits
				nbits -= e & entryBits
				e = uint64(lit[bits&litMask])
				if e&uint64(isLiteral) != 0 {
					binary.LittleEndian.PutUint16(out[op&outMask:op&outMask+2], uint16(e>>16))
					op += e >> 8 & 3
					bits >>= e & entryBits
					nbits -= e & entryBits
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
		saved := bits
		if e&uint64(isException) != 0 {
			if e&uint64(isLink) == 0 {
				break
			}
			e = uint64(lit[(e>>16+bits>>litBits&(1<<(e>>8&15)-1))&litAllMask])
			if e&uint64(isException) != 0 {
				break
			}
			bits >>= litBits
			nbits -= litBits
			if e&uint64(isLiteral) != 0 {
				out[op&outMask] = byte(e >> 16)
				op++
				bits >>= e & entryBits
				nbits -= e & entryBits
				bits |= binary.LittleEndian.Uint64(in[ip&inMask:ip&inMask+8]) << (nbits & 63)
				ip += 7 - nbits>>3&7
				nbits |= 56
				e = uint64(lit[bits&litMask])
				continue
			}
			saved = bits
		}
		bits >>= e & entryBits
		nbits -= e & entryBits
		length := e>>16 + saved&(1<<(e&entryBits)-1)>>(e>>8&15)

		d := uint64(dist[bits&distMask])
		if d&uint64(isException) != 0 {
			if d&uint64(isLink) != 0 {
				bits >>= distBits
				nbits -= distBits
				d = uint64(dist[(d>>16+bits&(1<<(d>>8&15)-1))&distAllMask])
			}
			if d&uint64(isException) != 0 {
				bad = errUnusedDist
				break
			}
		}
		saved = bits
		bits >>= d & entryBits
		nbits -= d & entryBits
		distance := d>>16 + saved&(1<<(d&entryBits)-1)>>(d>>8&15)
		if distance > op-start {
			bad = errFar
			break
		}
		bits |= binary.LittleEndian.Uint64(in[ip&inMask:ip&inMask+8]) << (nbits & 63)
		ip += 7 - nbits>>3&7
		nbits |= 56
		e = uint64(lit[bits&litMask])

		from, to := op-distance, op
		op += length
		if distance >= 8 {
			for {
				v := binary.LittleEndian.Uint64(out[from&outMask : from&outMask+8])
				binary.LittleEndian.PutUint64(out[to&outMask:to&outMask+8], v)
				v = binary.LittleEndian.Uint64(out[(from+8)&outMask : (from+8)&outMask+8])
				binary.LittleEndian.PutUint64(out[(to+8)&outMask:(to+8)&outMask+8], v)
				from += 16
				to += 16
				if to >= op {
					break
				}
			}
		} else if distance == 1 {
			v := uint64(out[from&outMask]) * 0x0101010101010101
			for {
				binary.LittleEndian.PutUint64(out[to&outMask:to&outMask+8], v)
				to += 8
				if to >= op {
					break
				}
			}
		} else {
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
