package erofs

import (
	"encoding/binary"
	"math/bits"
)

const (
	formatExtended = 1    // the inode is 64 bytes long
	chunkIndexes   = 0x20 // the chunk format has indexes, not bare block numbers
	maxChunkBits   = 31
)

// writeInodes writes the inode area: each inode with its attributes and what lies inline behind it.
func (p *plan) writeInodes(out *writer) {
	base := p.metaBlock << p.blockBits
	var scratch []byte
	for _, n := range p.order {
		out.padTo(base + n.nid*slotSize)
		scratch = p.appendInode(scratch[:0], n)
		scratch = appendXattrs(scratch, n.Xattrs)
		switch {
		case n.layout == layoutChunks:
			scratch = append(scratch, make([]byte, alignUp(uint64(len(scratch)), chunkIndex)-uint64(len(scratch)))...)
			scratch = p.appendChunkIndex(scratch, n)
		case n.layout == layoutInline && n.Mode&TypeMask == TypeDir:
			scratch = appendDir(scratch, n, p.opts.BlockSize, lastBlock)
		case n.layout == layoutInline:
			scratch = append(scratch, n.Target[len(n.Target)&^(p.opts.BlockSize-1):]...)
		}
		out.bytes(scratch)
	}
	out.padTo(p.dataBlock << p.blockBits)
}

// writeData writes the whole blocks of directories and links, in the order in which place numbered them.
func (p *plan) writeData(out *writer) {
	var scratch []byte
	for _, n := range p.order {
		blocks := allBlocks
		if n.layout == layoutInline {
			blocks = fullBlocks
		}
		switch n.Mode & TypeMask {
		case TypeDir:
			scratch = appendDir(scratch[:0], n, p.opts.BlockSize, blocks)
			out.bytes(scratch)
		case TypeSymlink:
			end := len(n.Target)
			if n.layout == layoutInline {
				end &^= p.opts.BlockSize - 1
			}
			out.string(n.Target[:end])
		}
		out.padTo(alignUp(out.pos, uint64(p.opts.BlockSize)))
	}
}

// appendInode appends struct erofs_inode_extended.
func (p *plan) appendInode(b []byte, n *Inode) []byte {
	size, union := p.content(n), uint32(0)
	switch n.Mode & TypeMask {
	case TypeRegular:
		size = n.Size
		if n.layout == layoutChunks {
			union = chunkIndexes | p.chunkBits(n.Size)
		}
	case TypeDir, TypeSymlink:
		union = n.block
	case TypeChar, TypeBlock:
		union = deviceNumber(n.Major, n.Minor)
	}
	le := binary.LittleEndian
	b = le.AppendUint16(b, n.layout<<1|formatExtended)
	b = le.AppendUint16(b, xattrCount(n.Xattrs))
	b = le.AppendUint16(b, n.Mode)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, size)
	b = le.AppendUint32(b, union)
	b = le.AppendUint32(b, n.ino)
	b = le.AppendUint32(b, n.UID)
	b = le.AppendUint32(b, n.GID)
	b = le.AppendUint64(b, uint64(n.Mtime))
	b = le.AppendUint32(b, n.MtimeNsec)
	b = le.AppendUint32(b, n.nlink)
	return append(b, make([]byte, 16)...)
}

// appendChunkIndex appends the only chunk index of a file.
func (p *plan) appendChunkIndex(b []byte, n *Inode) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, 0)
	b = le.AppendUint16(b, n.Slot)
	return le.AppendUint32(b, uint32(n.Offset>>p.blockBits))
}

// chunkBits is the smallest chunk that holds size bytes, as a power of two of blocks.
func (p *plan) chunkBits(size uint64) uint32 {
	blocks := alignUp(size, uint64(p.opts.BlockSize)) >> p.blockBits
	return uint32(bits.Len64(blocks - 1))
}

// deviceNumber encodes like the kernel's new_encode_dev.
func deviceNumber(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}
