package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// Vmlinux takes the uncompressed ELF kernel out of the amd64 image, for VMMs that boot nothing else, and
// keeps it in cacheDir under its hash. Symbols are left out: they are two thirds of it.
func (s Source) Vmlinux(cacheDir string) (path, sha256Hex string, err error) {
	image, err := readFile(s.Image(), maxImage)
	if err != nil {
		return "", "", fmt.Errorf("extract vmlinux of kernel %s: %w", s.Release, err)
	}
	vmlinux, err := extractVmlinux(image)
	if err != nil {
		return "", "", fmt.Errorf("extract vmlinux of kernel %s: %w", s.Release, err)
	}
	sha256Hex = hash(vmlinux)
	path = filepath.Join(cacheDir, "vmlinux-"+sha256Hex)
	if err := keep(path, vmlinux); err != nil {
		return "", "", fmt.Errorf("extract vmlinux of kernel %s: %w", s.Release, err)
	}
	return path, sha256Hex, nil
}

// bzImage is what we use of the x86 boot header (Documentation/arch/x86/boot.rst in the kernel).
type bzImage struct {
	version string // release, then who built it and when
	payload []byte // the compressed ELF
}

// Offsets in the boot header.
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202
	offProtocol      = 0x206
	offVersion       = 0x20e
	offPayload       = 0x248
	offPayloadLength = 0x24c
	headerEnd        = 0x250
	sector           = 512
)

var errNotBzImage = errors.New("vmlinuz is not an x86 kernel image (bzImage)")

func parseBzImage(b []byte) (bzImage, error) {
	if len(b) < headerEnd || string(b[offMagic:offMagic+4]) != "HdrS" {
		return bzImage{}, errNotBzImage
	}
	le := binary.LittleEndian
	if le.Uint16(b[offProtocol:]) < 0x208 {
		return bzImage{}, fmt.Errorf("%w of boot protocol 2.08 or newer", errNotBzImage)
	}
	setup := uint64(b[offSetupSects])
	if setup == 0 {
		setup = 4 // as the boot protocol says of very old images
	}
	start := (setup+1)*sector + uint64(le.Uint32(b[offPayload:]))
	end := start + uint64(le.Uint32(b[offPayloadLength:]))
	if end > uint64(len(b)) {
		return bzImage{}, fmt.Errorf("%w: it is cut off at %d of %d bytes", errNotBzImage, len(b), end)
	}
	h := bzImage{payload: b[start:end]}
	if at := uint64(le.Uint16(b[offVersion:])); at != 0 && at+sector < uint64(len(b)) {
		text, _, _ := bytes.Cut(b[at+sector:min(at+sector+256, uint64(len(b)))], []byte{0})
		h.version = string(text)
	}
	return h, nil
}

func extractVmlinux(image []byte) ([]byte, error) {
	h, err := parseBzImage(image)
	if err != nil {
		return nil, err
	}
	vmlinux, err := decompressPayload(h.payload)
	if err != nil {
		return nil, err
	}
	return stripELF(vmlinux)
}

// decompressPayload tells the compression from the first bytes. Except after gzip, whose format has the
// size itself, the kernel's build puts the uncompressed size behind the stream; the decoders would take
// those four bytes for the start of another stream.
func decompressPayload(p []byte) ([]byte, error) {
	if len(p) < 10 {
		return nil, errors.New("the kernel image has no payload")
	}
	stream := bytes.NewReader(p[:len(p)-4])
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(p, []byte{0x02, 0x21, 0x4c, 0x18}):
		r = lz4.NewReader(stream)
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(stream, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20)); err == nil {
			defer d.Close()
		}
		r = d
	case bytes.HasPrefix(p, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(bytes.NewReader(p))
	case bytes.HasPrefix(p, []byte("\xfd7zXZ\x00")):
		r, err = xz.NewReader(stream)
	default:
		return nil, fmt.Errorf("the kernel image is compressed in a way that is not known here (it begins % x); LZ4, zstd, gzip and xz are", p[:6])
	}
	if err != nil {
		return nil, fmt.Errorf("decompress kernel image: %w", err)
	}
	b, err := readAll(r, maxImage)
	if err != nil {
		return nil, fmt.Errorf("decompress kernel image: %w", err)
	}
	return b, nil
}

// stripELF keeps the headers and what the program headers load, which is all that a VMM reads.
func stripELF(b []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("vmlinux: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.ByteOrder != binary.LittleEndian {
		return nil, errors.New("vmlinux is not a 64-bit little-endian ELF")
	}
	le := binary.LittleEndian
	const ehdrSize, phoff, phentsize, phnum = 64, 0x20, 0x36, 0x38
	end := max(ehdrSize, le.Uint64(b[phoff:])+uint64(le.Uint16(b[phentsize:]))*uint64(le.Uint16(b[phnum:])))
	for _, p := range f.Progs {
		end = max(end, p.Off+p.Filesz)
	}
	if end > uint64(len(b)) {
		return nil, fmt.Errorf("vmlinux is cut off at %d of %d bytes", len(b), end)
	}
	out := bytes.Clone(b[:end])
	// No section headers any more: offset, count and index of their names.
	const shoff, shnum, shstrndx = 0x28, 0x3c, 0x3e
	le.PutUint64(out[shoff:], 0)
	le.PutUint16(out[shnum:], 0)
	le.PutUint16(out[shstrndx:], 0)
	return out, nil
}
