package erofs

import "encoding/binary"

const direntSize = 12

// Which blocks of a directory to encode.
type blocks int

const (
	allBlocks  blocks = iota // the last one as long as what is in it
	fullBlocks               // all but the last
	lastBlock
)

// fit is how many of names go into the next block, and the bytes they take.
func fit(names []name, block int) (count, used int) {
	for _, n := range names {
		need := direntSize + len(n.text)
		if used+need > block {
			break
		}
		used += need
		count++
	}
	return count, used
}

// dirSize is i_size of a directory with these names: whole blocks and what is in the last one.
func dirSize(names []name, block int) uint64 {
	var size uint64
	for len(names) > 0 {
		count, used := fit(names, block)
		names = names[count:]
		if len(names) > 0 {
			used = block
		}
		size += uint64(used)
	}
	return size
}

// appendDir appends blocks of dir: in each the entries, sorted, and behind them their names.
func (p *plan) appendDir(b []byte, dir Node, which blocks) []byte {
	block := p.opts.BlockSize
	names := p.names(dir)
	for len(names) > 0 {
		count, _ := fit(names, block)
		last := count == len(names)
		if last && which != fullBlocks || !last && which != lastBlock {
			start := len(b)
			b = p.appendDirBlock(b, names[:count])
			if !last {
				b = append(b, make([]byte, block-(len(b)-start))...)
			}
		}
		names = names[count:]
	}
	return b
}

func (p *plan) appendDirBlock(b []byte, names []name) []byte {
	le := binary.LittleEndian
	offset := direntSize * len(names)
	for _, n := range names {
		r := p.at(n.node)
		b = le.AppendUint64(b, uint64(r.nid))
		b = le.AppendUint16(b, uint16(offset))
		b = append(b, direntType(r.mode), 0)
		offset += len(n.text)
	}
	for _, n := range names {
		b = append(b, n.text...)
	}
	return b
}

// direntType is the EROFS_FT_* of a mode.
func direntType(mode uint16) byte {
	switch mode & TypeMask {
	case TypeRegular:
		return 1
	case TypeDir:
		return 2
	case TypeChar:
		return 3
	case TypeBlock:
		return 4
	case TypeFIFO:
		return 5
	case TypeSocket:
		return 6
	case TypeSymlink:
		return 7
	default:
		return 0
	}
}
