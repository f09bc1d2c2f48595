package inflate

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
)

// A craft is a stream made by hand: what it holds, or what is wrong with it.
type craft struct {
	name    string
	stream  []byte
	content []byte // nil: whatever the other decoders say
	err     error
	reason  string
}

func crafted() []craft {
	return slices.Concat(goodBlocks(), badBlocks(), goodMembers(), badMembers())
}

func good(name string, c *crafter, content string) craft {
	return craft{name: name, stream: member(c.bytes()), content: []byte(content)}
}

func bad(name string, c *crafter, reason string) craft {
	return craft{name: name, stream: member(c.put(0, 400).bytes()), err: ErrData, reason: reason}
}

// with is so many lengths, of which these are not 0.
func with(total int, lengths map[int]uint8) []uint8 {
	list := make([]uint8, total)
	for s, n := range lengths {
		list[s] = n
	}
	return list
}

func repeat(n int, t ...token) []token { return slices.Repeat(t, n) }

func goodBlocks() []craft {
	rng := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, 65535)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	half := with(2, map[int]uint8{0: 1, 1: 1})
	only := with(257, map[int]uint8{endBlock: 1})
	ab := with(258, map[int]uint8{'a': 2, 'b': 2, endBlock: 2, 257: 2})
	// Words of 1, 2, ... 15 and 15 bits.
	steps := with(286, nil)
	for i := range 15 {
		steps['a'+i] = uint8(i + 1)
	}
	steps[endBlock] = 15
	stepDists := with(30, nil)
	for i := range 15 {
		stepDists[29-i] = uint8(i + 1)
	}
	stepDists[14] = 15
	stepMatch := with(286, map[int]uint8{'x': 1, endBlock: 3, 285: 15, 284: 15})
	for n := uint8(4); n < 15; n++ {
		stepMatch[257+int(n)] = n
	}
	stepMatch['y'] = 3
	stepMatch['z'] = 3

	all := make([]uint8, 286) // 226 words of 8 bits and 60 of 9
	for i := range all {
		all[i] = 8
		if i >= 226 {
			all[i] = 9
		}
	}
	far := literals(strings.Repeat("0123456789abcdef", 2048))
	farthest := append(slices.Clip(far), token{258, 32768}, token{3, 32768})
	over := append(slices.Clip(far), repeat(1500, token{258, 32768}, token{'!', 0}, token{3, 32767})...)
	deep := repeat(700, token{257, 16384}, token{'x', 0}, token{258, 200}, token{257, 192}, token{258, 129})
	near := literals("The quick brown fox jumps over the lazy dog.")
	for d := 1; d <= 40; d++ {
		for _, n := range []int{3, 7, 8, 9, 16, 17, 31, 258} {
			near = append(near, token{n, d})
		}
		near = append(near, token{d, 0})
	}
	every := make([]token, 256)
	for i := range every {
		every[i].length = i
	}
	return []craft{
		good("empty stored", new(crafter).stored(true, nil), ""),
		good("stored", new(crafter).stored(true, []byte("stored")), "stored"),
		good("stored of a byte", new(crafter).stored(true, []byte("s")), "s"),
		good("stored of all lengths", new(crafter).stored(false, noise).stored(false, noise[:1]).stored(true, noise), string(noise)+string(noise[:1])+string(noise)),
		good("stored between others", new(crafter).fixed(false, literals("a")...).stored(false, []byte("b")).fixed(true, literals("c")...), "abc"),
		good("many empty stored", func() *crafter {
			c := new(crafter)
			for range 200 {
				c.stored(false, nil)
			}
			return c.fixed(true)
		}(), ""),
		good("empty fixed", new(crafter).fixed(true), ""),
		good("fixed", new(crafter).fixed(true, literals("fixed \xff\x90\x8f\x00")...), "fixed \xff\x90\x8f\x00"),
		good("fixed twice, then dynamic", new(crafter).fixed(false, literals("a")...).fixed(false, literals("b")...).coded(false, ab, half, literals("ab")...).fixed(true, literals("c")...), "ababc"),
		good("longest match", new(crafter).fixed(true, token{'a', 0}, token{258, 1}), strings.Repeat("a", 259)),
		good("longest match by the symbol below", new(crafter).header(true, 1).word(canonical(fixedLits[:]), 'a').word(canonical(fixedLits[:]), 284).put(31, 5).word(canonical(fixedDists[:]), 0).word(canonical(fixedLits[:]), endBlock), strings.Repeat("a", 259)),
		good("matches of all distances to 40", new(crafter).fixed(true, near...), expand(near)),
		good("farthest distance", new(crafter).fixed(true, farthest...), expand(farthest)),
		good("farthest distance, over and over", new(crafter).fixed(true, over...), expand(over)),
		good("only an end", new(crafter).coded(true, only, half), ""),
		good("no code for distances", new(crafter).coded(true, ab, []uint8{0}, literals("abba")...), "abba"),
		good("one distance", new(crafter).coded(true, ab, []uint8{1}, append(literals("a"), token{3, 1}, token{'b', 0})...), "aaaab"),
		good("words of 15 bits", new(crafter).coded(true, steps, half, append(literals("abcdefghijklmno"), literals("oooooooonmonmonmaaaaaaaaaaaaaaaaaa")...)...), "abcdefghijklmnooooooooonmonmonmaaaaaaaaaaaaaaaaaa"),
		good("matches of 15 bits and all extra bits", new(crafter).fixed(false, far...).coded(true, stepMatch, stepDists, deep...), expand(append(slices.Clip(far), deep...))),
		good("all symbols", new(crafter).coded(true, all, half, every...), expand(every)),
		good("pairs of literals", new(crafter).coded(true, ab, half, literals(strings.Repeat("ab", 300)+"a")...), strings.Repeat("ab", 300)+"a"),
		good("repeated lengths", func() *crafter {
			// 0 × 138, 0 × 118, 256: 1, then 30 × a length by 16.
			c := new(crafter).dynamic(true, 257, 8, preLengths)
			pre := canonical(preLengths)
			c.word(pre, 18).put(127, 7).word(pre, 18).put(107, 7).word(pre, 1)
			c.word(pre, 3).word(pre, 16).put(3, 2).word(pre, 3)
			return c.tokens(canonical(only), canonical(only))
		}(), ""),
		good("repetition over the border of the codes", func() *crafter {
			c := new(crafter).dynamic(true, 257, 4, preLengths)
			pre := canonical(preLengths)
			c.word(pre, 18).put(127, 7).word(pre, 18).put(100, 7).word(pre, 17).put(4, 3) // 0 to 255
			c.word(pre, 1).word(pre, 17).put(1, 3)                                        // 256, and 4 distances of 0
			return c.tokens(canonical(only), canonical(only))
		}(), ""),
		good("code for lengths of one symbol", func() *crafter {
			// Lengths of 8 only: 256 of them are complete, so 257 are not.
			c := new(crafter).dynamic(true, 257, 1, with(19, map[int]uint8{18: 1, 1: 2, 0: 2}))
			pre := canonical(with(19, map[int]uint8{18: 1, 1: 2, 0: 2}))
			c.word(pre, 18).put(127, 7).word(pre, 18).put(107, 7).word(pre, 1).word(pre, 0)
			return c.tokens(canonical(only), canonical(only))
		}(), ""),
	}
}

func badBlocks() []craft {
	half := with(2, map[int]uint8{0: 1, 1: 1})
	ab := with(258, map[int]uint8{'a': 2, 'b': 2, endBlock: 2, 257: 2})
	pre := canonical(preLengths)
	far := literals(strings.Repeat("0123456789abcdef", 2047))
	fixedLit, fixedDist := canonical(fixedLits[:]), canonical(fixedDists[:])
	return []craft{
		bad("unknown kind", new(crafter).header(true, 3), "unknown kind of block"),
		bad("lengths of a stored block", new(crafter).header(true, 0).align().put(5, 16).put(5, 16), "two lengths of a stored block differ"),
		bad("287 symbols", new(crafter).header(true, 2).put(30, 5), "too many symbols for literals and lengths"),
		bad("31 distances", new(crafter).header(true, 2).put(0, 5).put(30, 5), "too many symbols for distances"),
		bad("over-subscribed lengths", new(crafter).dynamic(true, 257, 1, slices.Repeat([]uint8{4}, 19)), "over-subscribed code for the lengths of words"),
		bad("incomplete lengths", new(crafter).dynamic(true, 257, 1, slices.Repeat([]uint8{5}, 19)), "incomplete code for the lengths of words"),
		bad("no lengths", new(crafter).dynamic(true, 257, 1, make([]uint8, 19)), "unused word for a length of words"),
		bad("unused word for a length", new(crafter).dynamic(true, 257, 1, with(19, map[int]uint8{5: 1})).put(1, 1), "unused word for a length of words"),
		bad("repetition of nothing", new(crafter).dynamic(true, 257, 1, preLengths).word(pre, 16), "first length of words repeats the one before"),
		bad("repetition of zeros too far", new(crafter).dynamic(true, 257, 1, preLengths).word(pre, 18).put(127, 7).word(pre, 18).put(127, 7), "lengths of words for more symbols than there are"),
		bad("repetition too far", new(crafter).dynamic(true, 257, 1, preLengths).word(pre, 18).put(127, 7).word(pre, 18).put(106, 7).word(pre, 1).word(pre, 16).put(0, 2), "lengths of words for more symbols than there are"),
		bad("no end of block", new(crafter).codes(true, with(257, map[int]uint8{'a': 1, 'b': 1}), half), "no word for the end of a block"),
		bad("over-subscribed literals", new(crafter).codes(true, with(257, map[int]uint8{'a': 1, 'b': 1, endBlock: 1}), half), "over-subscribed code for literals and lengths"),
		bad("over-subscribed by the longest", new(crafter).codes(true, with(257, map[int]uint8{'a': 1, 'b': 1, endBlock: 15}), half), "over-subscribed code for literals and lengths"),
		bad("incomplete literals", new(crafter).codes(true, with(257, map[int]uint8{'a': 1, endBlock: 2}), half), "incomplete code for literals and lengths"),
		bad("one literal of two bits", new(crafter).codes(true, with(257, map[int]uint8{endBlock: 2}), half), "incomplete code for literals and lengths"),
		bad("over-subscribed distances", new(crafter).codes(true, ab, []uint8{1, 1, 1}), "over-subscribed code for distances"),
		bad("incomplete distances", new(crafter).codes(true, ab, []uint8{2, 2, 2}), "incomplete code for distances"),
		bad("one distance of two bits", new(crafter).codes(true, ab, []uint8{2}), "incomplete code for distances"),
		bad("unused literal", new(crafter).codes(true, with(257, map[int]uint8{endBlock: 1}), half).put(1, 1), errUnusedLit),
		bad("unused distance", new(crafter).codes(true, ab, []uint8{1}).word(canonical(ab), 'a').word(canonical(ab), 257).put(1, 1), errUnusedDist),
		bad("distance without a code", new(crafter).codes(true, ab, []uint8{0}).word(canonical(ab), 'a').word(canonical(ab), 257), errUnusedDist),
		bad("distance without a code, behind a block with one", new(crafter).coded(false, ab, half, literals("a")...).codes(true, ab, []uint8{0}).word(canonical(ab), 'a').word(canonical(ab), 257).put(0, 1), errUnusedDist),
		bad("length 286", new(crafter).header(true, 1).word(fixedLit, 'a').word(fixedLit, 286), errUnusedLit),
		bad("length 287", new(crafter).header(true, 1).word(fixedLit, 'a').word(fixedLit, 287), errUnusedLit),
		bad("distance 30", new(crafter).header(true, 1).word(fixedLit, 'a').word(fixedLit, 257).word(fixedDist, 30), errUnusedDist),
		bad("distance 31", new(crafter).header(true, 1).word(fixedLit, 'a').word(fixedLit, 257).word(fixedDist, 31), errUnusedDist),
		bad("match before anything", new(crafter).fixed(true, token{3, 1}), errFar),
		bad("distance too far by one", new(crafter).fixed(true, token{'a', 0}, token{3, 2}), errFar),
		bad("longest distance too far", new(crafter).fixed(true, append(far, token{3, 32768})...), errFar),
		bad("too far behind stored", new(crafter).stored(false, []byte("abc")).fixed(true, token{3, 4}), errFar),
	}
}

// headed is an empty member with flags and what goes with them.
func headed(flags byte, fields string) []byte {
	b := append([]byte{gzipID1, gzipID2, gzipDeflate, flags, 1, 2, 3, 4, 0, 3}, fields...)
	if flags&flagHeaderSum != 0 {
		b = binary.LittleEndian.AppendUint16(b, uint16(crc32.ChecksumIEEE(b)))
	}
	return slices.Concat(b, new(crafter).fixed(true, literals("x")...).bytes(), trailer([]byte("x")))
}

func goodMembers() []craft {
	a, b := member(new(crafter).fixed(true, literals("a")...).bytes()), member(new(crafter).stored(true, []byte("bcd")).bytes())
	empty := member(new(crafter).fixed(true).bytes())
	x := []byte("x")
	return []craft{
		{name: "two members", stream: slices.Concat(a, b), content: []byte("abcd")},
		{name: "empty members", stream: slices.Concat(empty, a, empty, empty, b, empty), content: []byte("abcd")},
		{name: "only empty members", stream: bytes.Repeat(empty, 3), content: []byte{}},
		{name: "many tiny members", stream: bytes.Repeat(a, 10_000), content: bytes.Repeat([]byte("a"), 10_000)},
		{name: "extra field", stream: headed(flagExtra, "\x05\x00extra"), content: x},
		{name: "empty extra field", stream: headed(flagExtra, "\x00\x00"), content: x},
		{name: "longest extra field", stream: headed(flagExtra, "\xff\xff"+strings.Repeat("e", 65535)), content: x},
		{name: "name", stream: headed(flagName, "layer.tar\x00"), content: x},
		{name: "longest name", stream: headed(flagName, strings.Repeat("n", 511)+"\x00"), content: x},
		{name: "name that is not text", stream: headed(flagName, "\xff\xfe\x80\x00"), content: x},
		{name: "comment", stream: headed(flagComment, "made by hand\x00"), content: x},
		{name: "checksum of the header", stream: headed(flagHeaderSum, ""), content: x},
		{name: "all fields", stream: headed(flagHeaderSum|flagExtra|flagName|flagComment|1, "\x02\x00exname\x00comment\x00"), content: x},
		{name: "all fields, twice", stream: bytes.Repeat(headed(flagHeaderSum|flagExtra|flagName|flagComment, "\x02\x00exname\x00comment\x00"), 2), content: []byte("xx")},
	}
}

func badMembers() []craft {
	a := member(new(crafter).fixed(true, literals("abc")...).bytes())
	changed := func(i int, to byte) []byte {
		b := slices.Clone(a)
		if i < 0 {
			i += len(b)
		}
		b[i] ^= to
		return b
	}
	wrongSum := headed(flagHeaderSum|flagName, "name\x00")
	wrongSum[12] ^= 1
	match := member(new(crafter).fixed(true, token{3, 1}).bytes())
	const behind = "what follows the last member is not another one"
	return []craft{
		{name: "nothing", err: io.ErrUnexpectedEOF},
		{name: "no gzip", stream: []byte("no gzip at all"), err: ErrHeader, reason: "does not begin as gzip does"},
		{name: "zlib", stream: []byte{0x78, 0x9c, 3, 0, 0, 0, 0, 1, 0, 0, 0}, err: ErrHeader, reason: "does not begin as gzip does"},
		{name: "first byte", stream: changed(0, 1), err: ErrHeader, reason: "does not begin as gzip does"},
		{name: "second byte", stream: changed(1, 1), err: ErrHeader, reason: "does not begin as gzip does"},
		{name: "method", stream: changed(2, 1), err: ErrHeader, reason: "unknown compression method"},
		{name: "reserved flag", stream: changed(3, 0x20), err: ErrHeader, reason: reservedFlags},
		{name: "reserved flags", stream: changed(3, 0xe0), err: ErrHeader, reason: reservedFlags},
		{name: "long name", stream: headed(flagName, strings.Repeat("n", 512)+"\x00"), err: ErrHeader, reason: "file name of more than 511 bytes"},
		{name: "long comment", stream: headed(flagComment, strings.Repeat("n", 512)+"\x00"), err: ErrHeader, reason: "comment of more than 511 bytes"},
		{name: "checksum of the header is wrong", stream: wrongSum, err: ErrHeader, reason: "header does not fit its checksum"},
		{name: "checksum is wrong", stream: changed(-8, 1), err: ErrChecksum, reason: "CRC-32 is different"},
		{name: "checksum's last byte is wrong", stream: changed(-5, 0x80), err: ErrChecksum, reason: "CRC-32 is different"},
		{name: "length is wrong", stream: changed(-4, 1), err: ErrChecksum, reason: "length is different"},
		{name: "length's last byte is wrong", stream: changed(-1, 0x80), err: ErrChecksum, reason: "length is different"},
		{name: "zeros behind", stream: append(slices.Clone(a), make([]byte, 512)...), err: ErrHeader, reason: behind},
		{name: "garbage behind", stream: append(slices.Clone(a), "garbage"...), err: ErrHeader, reason: behind},
		{name: "one byte behind", stream: append(slices.Clone(a), 0), err: ErrHeader, reason: behind},
		{name: "beginning of a member behind", stream: append(slices.Clone(a), gzipID1), err: io.ErrUnexpectedEOF},
		{name: "wrong in the second member", stream: slices.Concat(a, changed(-8, 1)), err: ErrChecksum, reason: "CRC-32 is different"},
		{name: "match into the member before", stream: slices.Concat(a, match), err: ErrData, reason: errFar},
	}
}
