package inflate

import (
	"math/bits"
	"math/rand/v2"
	"slices"
)

// A crafter writes deflate data bit by bit, right or wrong.
type crafter struct {
	out  []byte
	bits uint64
	n    int
}

// put writes the low n bits of v, the lowest first.
func (c *crafter) put(v uint64, n int) *crafter {
	for i := range n {
		c.bits |= v >> i & 1 << c.n
		if c.n++; c.n == 8 {
			c.out = append(c.out, byte(c.bits))
			c.bits, c.n = 0, 0
		}
	}
	return c
}

func (c *crafter) align() *crafter {
	for c.n > 0 {
		c.put(0, 1)
	}
	return c
}

func (c *crafter) bytes() []byte { return c.align().out }

func (c *crafter) header(final bool, kind uint64) *crafter {
	if final {
		return c.put(1, 1).put(kind, 2)
	}
	return c.put(0, 1).put(kind, 2)
}

func (c *crafter) stored(final bool, content []byte) *crafter {
	c.header(final, 0).align().put(uint64(len(content)), 16).put(uint64(^len(content)), 16)
	c.out = append(c.out, content...)
	return c
}

// A code is a word for each symbol, first bit lowest, and its length.
type code struct {
	words   []uint16
	lengths []uint8
}

// canonical gives out words by their lengths, as RFC 1951 has it.
func canonical(lengths []uint8) code {
	c := code{make([]uint16, len(lengths)), lengths}
	next := 0
	for n := uint8(1); n <= maxWord; n++ {
		for s, l := range lengths {
			if l == n {
				c.words[s] = bits.Reverse16(uint16(next)) >> (16 - n)
				next++
			}
		}
		next <<= 1
	}
	return c
}

func (c *crafter) word(of code, symbol int) *crafter {
	return c.put(uint64(of.words[symbol]), int(of.lengths[symbol]))
}

// A match or, where distance is 0, a literal.
type token struct{ length, distance int }

func literals(s string) []token {
	var list []token
	for _, b := range []byte(s) {
		list = append(list, token{int(b), 0})
	}
	return list
}

// tokens writes them and the end of the block.
func (c *crafter) tokens(lits, dists code, list ...token) *crafter {
	for _, t := range list {
		if t.distance == 0 {
			c.word(lits, t.length)
			continue
		}
		// 284 with all its extra bits and 285 both stand for 258; take what has a word.
		s, extra, n := symbolOf(symbolEntries.lit[257:286], t.length)
		if lits.lengths[257+s] == 0 && t.length == 258 {
			s, extra, n = 27, 31, 5
		}
		c.word(lits, 257+s).put(extra, n)
		s, extra, n = symbolOf(symbolEntries.dist[:30], t.distance)
		c.word(dists, s).put(extra, n)
	}
	return c.word(lits, endBlock)
}

// expand is what tokens stand for.
func expand(list []token) string {
	var out []byte
	for _, t := range list {
		if t.distance == 0 {
			out = append(out, byte(t.length))
			continue
		}
		for range t.length {
			out = append(out, out[len(out)-t.distance])
		}
	}
	return string(out)
}

func symbolOf(list []entry, value int) (symbol int, extra uint64, n int) {
	for s := len(list) - 1; ; s-- {
		if base := int(list[s] >> 16); base <= value {
			return s, uint64(value - base), int(list[s] & entryBits)
		}
	}
}

func (c *crafter) fixed(final bool, list ...token) *crafter {
	return c.header(final, 1).tokens(canonical(fixedLits[:]), canonical(fixedDists[:]), list...)
}

// preLengths is a complete code of all 19 symbols.
var preLengths = []uint8{4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5}

// codes writes the header of a dynamic block, with codes that may be wrong, and no repetitions.
func (c *crafter) codes(final bool, lits, dists []uint8) *crafter {
	c.dynamic(final, len(lits), len(dists), preLengths)
	pre := canonical(preLengths)
	for _, n := range slices.Concat(lits, dists) {
		c.word(pre, int(n))
	}
	return c
}

// dynamic writes the header of a dynamic block up to its lengths.
func (c *crafter) dynamic(final bool, lits, dists int, pre []uint8) *crafter {
	c.header(final, 2).put(uint64(lits-257), 5).put(uint64(dists-1), 5).put(15, 4)
	for _, s := range preOrder {
		c.put(uint64(pre[s]), 3)
	}
	return c
}

func (c *crafter) coded(final bool, lits, dists []uint8, list ...token) *crafter {
	return c.codes(final, lits, dists).tokens(canonical(lits), canonical(dists), list...)
}

// lengthsOf gives the symbols words of lengths of a random complete code.
func lengthsOf(rng *rand.Rand, total int, used []int) []uint8 {
	// Split leaves of a tree until there are enough, now and then the deepest one.
	leaves := []uint8{0}
	for len(leaves) < len(used) {
		i := rng.IntN(len(leaves))
		if rng.IntN(3) == 0 {
			i = len(leaves) - 1
		}
		if leaves[i] == maxWord {
			continue
		}
		leaves[i]++
		leaves = append(leaves, leaves[i])
	}
	if len(used) == 1 {
		leaves[0] = 1
	}
	rng.Shuffle(len(leaves), func(i, j int) { leaves[i], leaves[j] = leaves[j], leaves[i] })
	lengths := make([]uint8, total)
	for i, s := range used {
		lengths[s] = leaves[i]
	}
	return lengths
}

// random writes blocks of all kinds with codes and matches that no compressor would choose.
func random(rng *rand.Rand, blocks int) []byte {
	c := &crafter{}
	made := 0
	for i := range blocks {
		final := i == blocks-1
		switch rng.IntN(8) {
		case 0:
			b := make([]byte, rng.IntN(3000)*rng.IntN(2))
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			made += len(b)
			c.stored(final, b)
		case 1:
			lits, dists := rng.Perm(256)[:1+rng.IntN(255)], rng.Perm(30)
			c.fixed(final, randomTokens(rng, &made, lits, rng.Perm(29), dists)...)
		default:
			lits := rng.Perm(256)[:rng.IntN(256)]
			matches := rng.Perm(29)[:rng.IntN(30)]
			dists := rng.Perm(30)[:rng.IntN(31)]
			if len(dists) == 0 {
				matches = nil
			}
			used := append(slices.Clone(lits), endBlock)
			for _, m := range matches {
				used = append(used, 257+m)
			}
			c.coded(final, lengthsOf(rng, maxLits, used), lengthsOf(rng, maxDists, dists),
				randomTokens(rng, &made, lits, matches, dists)...)
		}
	}
	return c.bytes()
}

func randomTokens(rng *rand.Rand, made *int, lits, matches, dists []int) []token {
	var list []token
	run := rng.IntN(100)
	for range rng.IntN(2000) {
		if len(matches) > 0 && rng.IntN(100) < run {
			m, d := symbolEntries.lit[257+matches[rng.IntN(len(matches))]], symbolEntries.dist[dists[rng.IntN(len(dists))]]
			length := int(m>>16) + rng.IntN(1<<(m&entryBits))
			distance := int(d>>16) + rng.IntN(1<<(d&entryBits))
			if distance <= *made && (length != 258 || m>>16 == 258) {
				list = append(list, token{length, distance})
				*made += length
				continue
			}
		}
		if len(lits) > 0 {
			list = append(list, token{lits[rng.IntN(len(lits))], 0})
			*made++
		}
	}
	return list
}
