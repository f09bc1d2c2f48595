package erofs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

const (
	superOffset = 1024
	superSize   = 128
	deviceSize  = 128 // also the unit in which the superblock says where the device table begins
	superMagic  = 0xe0f5e1e2

	compatChecksum = 0x1 // the checksum field is meant
	compatMtime    = 0x2 // time stamps are those of the last change of the content

	incompatChunks  = 0x4
	incompatDevices = 0x8

	flatAlign = 4096 // of the devices in the flat address space
)

// writeSuper writes everything up to the inode area.
func (p *plan) writeSuper(out *writer) error {
	le := binary.LittleEndian
	block := uint64(p.opts.BlockSize)
	area := make([]byte, p.metaBlock*block)
	super := area[superOffset:]
	le.PutUint32(super[0:], superMagic)
	le.PutUint32(super[8:], compatMtime)
	super[12] = byte(p.blockBits)
	le.PutUint16(super[14:], uint16(p.at(Root).nid)) // 0: the root is the first inode
	le.PutUint64(super[16:], uint64(len(p.order)))
	le.PutUint32(super[36:], uint32(p.endBlock))
	le.PutUint32(super[40:], uint32(p.metaBlock))
	copy(super[48:64], p.opts.UUID[:])
	incompat := uint32(incompatChunks)
	if len(p.opts.Devices) > 0 {
		incompat |= incompatDevices
	}
	le.PutUint32(super[80:], incompat)
	if len(p.opts.Devices) > math.MaxUint16 {
		return fmt.Errorf("%d devices: at most %d", len(p.opts.Devices), math.MaxUint16)
	}
	le.PutUint16(super[86:], uint16(len(p.opts.Devices)))
	le.PutUint16(super[88:], (superOffset+superSize)/deviceSize)
	if err := p.putDevices(super[superSize:]); err != nil {
		return err
	}

	// The checksum is over the rest of the superblock's block, with its own field zero, and without the
	// final inversion of the usual crc32c. Where the superblock is not in the first block, mkfs.erofs makes
	// none, and fsck.erofs 1.8 crashes over it.
	if block > superOffset {
		le.PutUint32(super[8:], compatChecksum|compatMtime)
		le.PutUint32(super[4:], ^crc32.Checksum(super[:block-superOffset], crc32.MakeTable(crc32.Castagnoli)))
	}
	out.bytes(area)
	return out.err
}

// putDevices fills the device table. Every device also gets a place in one flat address space behind the
// metadata, so that the same image can be used with all of it concatenated on a single drive.
func (p *plan) putDevices(table []byte) error {
	le := binary.LittleEndian
	block := uint64(p.opts.BlockSize)
	flat := alignUp(p.endBlock*block, flatAlign) / block
	for i, device := range p.opts.Devices {
		if device.Tag == "" || len(device.Tag) > TagSize {
			return fmt.Errorf("device %d: tag of %d bytes, want 1 to %d", i+1, len(device.Tag), TagSize)
		}
		if device.Size < 0 {
			return fmt.Errorf("device %d: size %d", i+1, device.Size)
		}
		blocks := uint64(device.Size) / block
		if flat+blocks > math.MaxUint32 {
			return fmt.Errorf("devices 1 to %d have more blocks than 32 bits can number", i+1)
		}
		slot := table[deviceSize*i:]
		copy(slot[:TagSize], device.Tag)
		le.PutUint32(slot[64:], uint32(blocks))
		le.PutUint32(slot[68:], uint32(flat))
		flat += alignUp(blocks*block, flatAlign) / block
	}
	return nil
}
