package image

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"unicode/utf16"
)

// A pack disk is partitioned by a GUID partition table as UEFI describes it (UEFI Specification 2.10,
// chapter 5): protective MBR, primary header and entries, the partitions, backup entries and header. All
// GUIDs follow from the layers, so that the same layers give the same bytes.
const (
	gptEntries     = 128
	gptEntrySize   = 128
	gptTableBytes  = gptEntries * gptEntrySize
	gptHeaderBytes = 92
	packAlign      = 4096 // of partitions: what file systems need to share blocks instead of copying them
	packFirst      = (2*sectorSize + gptTableBytes + packAlign - 1) / packAlign * packAlign
)

// A partition of a pack disk, in bytes.
type partition struct {
	layer Layer
	start int64
	size  int64 // whole sectors
}

// A packPlan is the layout of a pack disk.
type packPlan struct {
	id         [sha256.Size]byte
	partitions []partition
	size       int64 // of the disk
}

func planPack(layers []Layer) (*packPlan, error) {
	if len(layers) == 0 || len(layers) > gptEntries {
		return nil, fmt.Errorf("pack disk of %d layers: want 1 to %d", len(layers), gptEntries)
	}
	p := &packPlan{size: packFirst}
	h := sha256.New()
	h.Write([]byte("pinnace pack disk 1\n"))
	for _, l := range layers {
		if l.Size <= 0 {
			return nil, fmt.Errorf("pack disk: layer %s has %d bytes", l.DiffID, l.Size)
		}
		fmt.Fprintf(h, "%s %d\n", l.DiffID, l.Size)
		p.partitions = append(p.partitions, partition{layer: l, start: p.size, size: alignTo(l.Size, sectorSize)})
		p.size = alignTo(p.size+l.Size, packAlign)
	}
	p.size = alignTo(p.size+gptTableBytes+sectorSize, packAlign)
	p.id = [sha256.Size]byte(h.Sum(nil))
	return p, nil
}

// head is what comes before the first partition.
func (p *packPlan) head() []byte {
	table := p.table()
	b := make([]byte, packFirst)
	p.putProtectiveMBR(b)
	p.putHeader(b[sectorSize:], 1, p.lastSector(), 2, table)
	copy(b[2*sectorSize:], table)
	return b
}

// tail is the end of the disk: the backup entries and header.
func (p *packPlan) tail() []byte {
	table := p.table()
	b := make([]byte, gptTableBytes+sectorSize)
	copy(b, table)
	p.putHeader(b[gptTableBytes:], p.lastSector(), 1, p.lastUsable()+1, table)
	return b
}

func (p *packPlan) lastSector() uint64 { return uint64(p.size)/sectorSize - 1 }
func (p *packPlan) lastUsable() uint64 { return p.lastSector() - gptTableBytes/sectorSize - 1 }

// putProtectiveMBR writes one partition over the whole disk, for tools that know no GPT.
func (p *packPlan) putProtectiveMBR(b []byte) {
	entry := b[446:]
	copy(entry, []byte{0, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[8:], 1)
	binary.LittleEndian.PutUint32(entry[12:], uint32(min(p.lastSector(), 1<<32-1)))
	b[510], b[511] = 0x55, 0xaa
}

func (p *packPlan) putHeader(b []byte, self, other, table uint64, entries []byte) {
	le := binary.LittleEndian
	copy(b, "EFI PART")
	le.PutUint32(b[8:], 0x00010000)
	le.PutUint32(b[12:], gptHeaderBytes)
	le.PutUint64(b[24:], self)
	le.PutUint64(b[32:], other)
	le.PutUint64(b[40:], 2+gptTableBytes/sectorSize)
	le.PutUint64(b[48:], p.lastUsable())
	copy(b[56:], guid(p.id[:]))
	le.PutUint64(b[72:], table)
	le.PutUint32(b[80:], gptEntries)
	le.PutUint32(b[84:], gptEntrySize)
	le.PutUint32(b[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:gptHeaderBytes])) // over itself as zero
}

func (p *packPlan) table() []byte {
	le := binary.LittleEndian
	b := make([]byte, gptTableBytes)
	for i, part := range p.partitions {
		entry := b[i*gptEntrySize:]
		copy(entry, linuxData())
		unique := sha256.Sum256(fmt.Appendf(p.id[:], "partition %d", i+1))
		copy(entry[16:], guid(unique[:]))
		le.PutUint64(entry[32:], uint64(part.start)/sectorSize)
		le.PutUint64(entry[40:], uint64(part.start+part.size)/sectorSize-1)
		le.PutUint64(entry[48:], 1<<60|1<<63) // read-only, and not to be mounted by itself
		name := utf16.Encode([]rune(part.layer.DiffID[len(digestPrefix):][:36]))
		for j, unit := range name {
			le.PutUint16(entry[56+2*j:], unit)
		}
	}
	return b
}

// guid makes the mixed-endian bytes of a version 8 GUID, the one for names of one's own, out of a hash.
func guid(hash []byte) []byte {
	g := append([]byte(nil), hash[:16]...)
	g[7] = g[7]&0x0f | 0x80
	g[8] = g[8]&0x3f | 0x80
	return g
}

// linuxData is the partition type 0fc63daf-8483-4772-8e79-3d69d8477de4.
func linuxData() []byte {
	return []byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}
}

func alignTo(n, to int64) int64 { return (n + to - 1) / to * to }
