package erofs

import (
	"encoding/binary"
	"math"
	"math/bits"
)

const (
	chunkIndexes = 0x20 // the chunk format has indexes, not bare block numbers
	maxChunkBits = 31
	noBlock      = math.MaxUint32 // of a chunk that is a hole
)

// MaxChunks is how many chunks a sparse file may be made of: 8 MiB of index.
const MaxChunks = 1 << 20

// chunks say how a file is cut: into count pieces of 1<<bits blocks, each of which is in one piece in the
// device, or nowhere.
type chunks struct {
	bits  uint32
	count uint64
}

func (p *plan) chunks(r *record) chunks {
	if r.extra > 0 {
		if _, sparse, extents := decodeExtra(p.tree.extras[r.extra-1]); sparse {
			return p.sparseChunks(Inode{Size: r.a, Extents: extents})
		}
	}
	return chunks{bits: p.wholeBits(r.a), count: 1}
}

// wholeBits is the smallest chunk that holds size bytes.
func (p *plan) wholeBits(size uint64) uint32 {
	blocks := alignUp(size, uint64(p.opts.BlockSize)) >> p.blockBits
	return uint32(bits.Len64(blocks - 1))
}

// Chunks is how many chunks the index of a file has: one, unless it is sparse.
func Chunks(n *Inode, blockSize int) uint64 {
	if !n.Sparse {
		return 1
	}
	p := plan{opts: Options{BlockSize: blockSize}, blockBits: bits.TrailingZeros(uint(blockSize))}
	return p.sparseChunks(*n).count
}

// sparseChunks finds the largest chunks that begin and end where the extents of n do.
func (p *plan) sparseChunks(n Inode) chunks {
	var edges uint64
	for _, e := range n.Extents {
		edges |= e.Start
		if end := e.Start + e.Size; end != n.Size {
			edges |= end
		}
	}
	size := min(uint32(bits.TrailingZeros64(edges>>p.blockBits)), p.wholeBits(n.Size))
	chunk := uint64(1) << (size + uint32(p.blockBits))
	return chunks{bits: size, count: alignUp(n.Size, chunk) / chunk}
}

// writeChunks writes the chunk indexes of a file.
func (p *plan) writeChunks(out *writer, r *record) {
	c := p.chunks(r)
	extents := []Extent{{Size: r.a, Offset: r.b}}
	if r.extra > 0 {
		if _, sparse, list := decodeExtra(p.tree.extras[r.extra-1]); sparse {
			extents = list
		}
	}
	chunk := uint64(1) << (c.bits + uint32(p.blockBits))
	for i := range c.count {
		start := i * chunk
		for len(extents) > 0 && start >= extents[0].Start+extents[0].Size {
			extents = extents[1:]
		}
		var index [chunkIndex]byte
		le := binary.LittleEndian
		if len(extents) == 0 || start < extents[0].Start {
			le.PutUint32(index[4:], noBlock)
		} else {
			le.PutUint16(index[2:], r.slot)
			le.PutUint32(index[4:], uint32((extents[0].Offset+start-extents[0].Start)>>p.blockBits))
		}
		out.bytes(index[:])
	}
}
