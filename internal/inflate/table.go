package inflate

import "math/bits"

// A code is decoded by a table that the next bits of the stream are an index of. Codes longer than the
// table's bits go on in a second table, behind the first one in the same array. An entry is:
//
//	bits 0-5    bits to use up: of the code, and of the extra bits behind it
//	bits 8-11   bits of the code alone
//	            link to a second table: the bits that are an index of it
//	bits 12-15  flags
//	bits 16-31  literals: the byte
//	            lengths and distances: the base that the extra bits are added to
//	            link to a second table: where it begins
//
// The bits of an entry in a second table do not count those of the first.
type entry = uint32

const (
	isLiteral   entry = 1 << 15
	isException entry = 1 << 14 // one of those that follow, or a code that stands for nothing
	isLink      entry = 1 << 13
	isEnd       entry = 1 << 12 // of the block

	// A code that stands for nothing. Only a code of a single word of one bit has such, or one without any.
	unused = isException | 1

	entryBits = 63
)

const (
	maxWord = 15 // bits of the longest code word

	litBits  = 11
	distBits = 9
	preBits  = 7

	// Powers of two that hold the first table and all second ones. A second table of 2^n entries has at
	// least n+1 words: so those of 288 symbols take at most 288×2^4/5 = 922 entries behind 2048, and those
	// of 32 symbols 32×2^6/7 = 293 behind 512.
	litSize  = 1 << 12
	distSize = 1 << 10
	preSize  = 1 << preBits

	maxLits  = 286 // symbols that a block may define
	maxDists = 30
	endBlock = 256
)

type symbols struct {
	lit  [288]entry // 286 and 287 have words in the fixed code, and may not be used
	dist [32]entry  // 30 and 31 likewise
	pre  [19]entry
}

// symbolEntries are the entries of all symbols, but for the lengths of their words.
var symbolEntries = makeSymbols()

func makeSymbols() *symbols {
	s := &symbols{}
	for i := range s.lit {
		switch {
		case i < endBlock:
			s.lit[i] = isLiteral | entry(i)<<16
		case i == endBlock:
			s.lit[i] = isException | isEnd
		case i == 285:
			s.lit[i] = 258 << 16
		case i < 265:
			s.lit[i] = entry(i-257+3) << 16
		case i < 285:
			extra := entry(i-261) / 4
			s.lit[i] = (3+(4+entry(i-261)%4)<<extra)<<16 | extra
		default:
			s.lit[i] = isException
		}
	}
	for i := range s.dist {
		switch {
		case i < 4:
			s.dist[i] = entry(i+1) << 16
		case i < 30:
			extra := entry(i-2) / 2
			s.dist[i] = (1+(2+entry(i)%2)<<extra)<<16 | extra
		default:
			s.dist[i] = isException
		}
	}
	for i := range s.pre {
		s.pre[i] = entry(i) << 16
	}
	return s
}

// sized is the entry of a symbol with a word of so many bits.
func sized(symbol entry, word int) entry {
	return symbol + entry(word)<<8 + entry(word)
}

// build makes the table of a code, given by the length of each symbol's word. It returns what is wrong with
// the code, or nothing.
func build(table []entry, first int, lengths []uint8, symbol []entry) string {
	var count [maxWord + 1]int
	for _, n := range lengths {
		count[n&maxWord]++
	}
	used := len(lengths) - count[0]
	count[0] = 0
	left := 1 // words that are not taken yet, of the length at hand
	for n := 1; n <= maxWord; n++ {
		if left = left<<1 - count[n]; left < 0 {
			return "over-subscribed code"
		}
	}
	main := table[:1<<first]
	if left > 0 {
		if used > 1 || used == 1 && count[1] != 1 {
			return "incomplete code"
		}
		// Tolerated, as all decoders do: a code of one symbol needs no bit, but has one, of which the
		// other value means nothing; and who uses no distances needs no code for them.
		for i := range main {
			main[i] = unused
		}
		for s, n := range lengths {
			if n == 1 {
				for i := 0; i < len(main); i += 2 {
					main[i] = sized(symbol[s], 1)
				}
			}
		}
		return ""
	}

	// The symbols by the length of their words.
	var sorted [288]uint16
	var next [maxWord + 2]int
	for n := 1; n <= maxWord; n++ {
		next[n+1] = next[n] + count[n]
	}
	for s, n := range lengths {
		if n != 0 {
			sorted[next[n]] = uint16(s)
			next[n]++
		}
	}

	// Words are given out in order; they lie in the stream with their first bit lowest. The table is filled
	// for the words of one bit, then doubled, and so on.
	list := sorted[:used]
	word, size := 0, 1
	for n := 1; n <= first; n++ {
		copy(table[size:2*size], table[:size])
		size *= 2
		for range count[n] {
			table[word] = sized(symbol[list[0]], n)
			list = list[1:]
			word = successor(word, n)
		}
	}

	prefix, start, end, index := -1, 0, 1<<first, 0
	for n := first + 1; n <= maxWord; n++ {
		for range count[n] {
			if p := word & (1<<first - 1); p != prefix {
				prefix, start = p, end
				index = secondBits(&count, first, n)
				end = start + 1<<index
				table[p] = isException | isLink | entry(start)<<16 | entry(index)<<8 | entry(first)
			}
			e := sized(symbol[list[0]], n-first)
			list = list[1:]
			for i := start + word>>first; i < end; i += 1 << (n - first) {
				table[i] = e
			}
			word = successor(word, n)
			count[n]--
		}
	}
	return ""
}

// successor is the word of n bits after word, of which the last bit is the highest. After the last one it
// gives 0.
func successor(word, n int) int {
	free := ^word & (1<<n - 1)
	if free == 0 {
		return 0
	}
	highest := 1 << (bits.Len(uint(free)) - 1)
	return word&(highest-1) | highest
}

// secondBits is how many bits are an index of a second table that begins with a word of n bits, when count
// words of each length are left.
func secondBits(count *[maxWord + 1]int, first, n int) int {
	b := n - first
	for room := 1<<b - count[n]; room > 0 && n < maxWord; {
		b++
		n++
		room = room<<1 - count[n]
	}
	return b
}
