package volume

import (
	"encoding/binary"
	"errors"
	"os"
)

// Where ext4 keeps what is read here, in its superblock (Documentation/filesystems/ext4/super.rst of the kernel).
const (
	superAt    = 1024
	superBytes = 1024
	superMagic = 0xEF53

	stateErrors = 0x2 // of s_state: the kernel has met an error, and nobody has checked the file system since
)

// super is what is read of a superblock. A guest wrote it.
type super struct {
	blocks, free uint64 // free is as of when the file system was unmounted last
	blockBytes   uint64
	state        uint16
}

var errNoFileSystem = errors.New("there is no ext4 file system in it")

func readSuper(path string) (super, error) {
	f, err := os.Open(path)
	if err != nil {
		return super{}, err
	}
	defer f.Close()
	var b [superBytes]byte
	if _, err := f.ReadAt(b[:], superAt); err != nil {
		return super{}, err
	}
	return parseSuper(b[:])
}

// parseSuper reads the superBytes of a superblock.
func parseSuper(b []byte) (super, error) {
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != superMagic {
		return super{}, errNoFileSystem
	}
	log := le.Uint32(b[0x18:])
	if log > 6 {
		return super{}, errNoFileSystem
	}
	return super{
		blocks:     uint64(le.Uint32(b[0x4:])) | uint64(le.Uint32(b[0x150:]))<<32,
		free:       uint64(le.Uint32(b[0xC:])) | uint64(le.Uint32(b[0x158:]))<<32,
		blockBytes: 1024 << log,
		state:      le.Uint16(b[0x3A:]),
	}, nil
}

// used is how many bytes are in use, in a volume of size bytes; -1 when the numbers make no sense.
func (s super) used(size int64) int64 {
	if s.blocks < s.free || s.blocks > uint64(size)/s.blockBytes {
		return -1
	}
	return int64((s.blocks - s.free) * s.blockBytes)
}

// damaged tells whether a kernel has noted an error.
func (s super) damaged() bool { return s.state&stateErrors != 0 }
