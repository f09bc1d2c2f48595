package erofs

import "encoding/binary"

const formatExtended = 1 // the inode is 64 bytes long

// writeInodes writes the inode area: each inode with its attributes and what lies inline behind it.
func (p *plan) writeInodes(out *writer) {
	base := p.metaBlock << p.blockBits
	var scratch []byte
	for _, n := range p.order {
		r := p.at(n)
		out.padTo(base + uint64(r.nid)*slotSize)
		scratch = p.appendInode(scratch[:0], n)
		scratch = appendXattrs(scratch, p.xattrs(r))
		switch {
		case r.layout == layoutChunks:
			scratch = append(scratch, make([]byte, alignUp(uint64(len(scratch)), chunkIndex)-uint64(len(scratch)))...)
			out.bytes(scratch)
			p.writeChunks(out, r)
			continue
		case r.layout == layoutInline && r.mode&TypeMask == TypeDir:
			scratch = p.appendDir(scratch, n, lastBlock)
		case r.layout == layoutInline:
			target := p.tree.target(r)
			scratch = append(scratch, target[len(target)&^(p.opts.BlockSize-1):]...)
		}
		out.bytes(scratch)
	}
	out.padTo(p.dataBlock << p.blockBits)
}

// writeData writes the whole blocks of directories and links, in the order in which place numbered them.
func (p *plan) writeData(out *writer) {
	var scratch []byte
	for _, n := range p.order {
		r := p.at(n)
		blocks := allBlocks
		if r.layout == layoutInline {
			blocks = fullBlocks
		}
		switch r.mode & TypeMask {
		case TypeDir:
			scratch = p.appendDir(scratch[:0], n, blocks)
			out.bytes(scratch)
		case TypeSymlink:
			target := p.tree.target(r)
			if r.layout == layoutInline {
				target = target[:len(target)&^(p.opts.BlockSize-1)]
			}
			out.string(target)
		default:
			continue
		}
		out.padTo(alignUp(out.pos, uint64(p.opts.BlockSize)))
	}
}

// appendInode appends struct erofs_inode_extended.
func (p *plan) appendInode(b []byte, n Node) []byte {
	r := p.at(n)
	size, union := p.content(n), uint32(0)
	switch r.mode & TypeMask {
	case TypeRegular:
		size = r.a
		if r.layout == layoutChunks {
			union = chunkIndexes | p.chunks(r).bits
		}
	case TypeDir, TypeSymlink:
		union = r.block
	case TypeChar, TypeBlock:
		union = deviceNumber(uint32(r.b>>32), uint32(r.b))
	}
	le := binary.LittleEndian
	b = le.AppendUint16(b, r.layout<<1|formatExtended)
	b = le.AppendUint16(b, xattrCount(p.xattrs(r)))
	b = le.AppendUint16(b, r.mode)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, size)
	b = le.AppendUint32(b, union)
	b = le.AppendUint32(b, r.ino)
	b = le.AppendUint32(b, r.uid)
	b = le.AppendUint32(b, r.gid)
	b = le.AppendUint64(b, uint64(r.mtime))
	b = le.AppendUint32(b, r.nsec)
	b = le.AppendUint32(b, r.nlink)
	return append(b, make([]byte, 16)...)
}

// deviceNumber encodes like the kernel's new_encode_dev.
func deviceNumber(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}
