package durable

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyPiece is how much of a file is copied between two looks at the context.
const copyPiece = 64 << 20

// Copy makes dst, an empty file, what src is: by sharing its blocks where the file system can do that, else by copying
// what is not a hole. It syncs nothing.
func Copy(ctx context.Context, dst, src *os.File) error {
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	// Another file system, or one that does not share blocks.
	size, err := src.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := copySparse(ctx, dst, src, size); err != nil {
		return err
	}
	return dst.Truncate(size)
}

func copySparse(ctx context.Context, dst, src *os.File, size int64) error {
	for at := int64(0); at < size; {
		data, err := src.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // holes to the end
		}
		if err != nil {
			return err
		}
		hole, err := src.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at = data; at < hole; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(hole-at, copyPiece)
			copied, err := io.Copy(io.NewOffsetWriter(dst, at), io.NewSectionReader(src, at, n))
			if err != nil {
				return err
			}
			if copied < n {
				return io.ErrUnexpectedEOF // somebody has cut it
			}
			at += n
		}
	}
	return nil
}
