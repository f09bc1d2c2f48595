package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/pinnacehq/pinnace/internal/inflate"
)

// A blobReader reads a blob, counts and hashes it, and refuses a byte more than the manifest declares.
type blobReader struct {
	ctx    context.Context // a reader has no other way to end with its caller
	src    io.Reader
	want   descriptor
	report func(bytes int64)
	hash   hash.Hash
	n      int64
}

func newBlobReader(ctx context.Context, src io.Reader, want descriptor, report func(int64)) *blobReader {
	return &blobReader{ctx: ctx, src: src, want: want, report: report, hash: sha256.New()}
}

func (r *blobReader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	n, err := r.src.Read(p)
	r.hash.Write(p[:n])
	r.n += int64(n)
	if r.n > r.want.Size {
		return 0, corrupt("%s is longer than the %d bytes that the manifest declares", r.want.Digest, r.want.Size)
	}
	if n > 0 {
		r.report(r.n)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("after %d of %d bytes: %w", r.n, r.want.Size, err)
	}
	return n, err
}

// verify is called at the end of the blob.
func (r *blobReader) verify() error {
	if r.n != r.want.Size {
		return corrupt("%s ends after %d bytes, the manifest declares %d", r.want.Digest, r.n, r.want.Size)
	}
	if got := digestPrefix + hex.EncodeToString(r.hash.Sum(nil)); got != r.want.Digest {
		return corrupt("received %s, want %s", got, r.want.Digest)
	}
	return nil
}

// decompress looks at the first bytes of a blob, because registries and media types are known to disagree
// with them, and gives its content.
func decompress(src io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(src, 64<<10)
	magic, err := buffered.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(magic) == 0:
		return nil, refuse("blob is empty, so it holds no tar")
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return io.NopCloser(inflate.NewReader(buffered)), nil // of any number of members
	case isZstd(magic):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return nil, refuse("compressed with xz, want gzip, zstd or nothing")
	case bytes.HasPrefix(magic, []byte("BZh")):
		return nil, refuse("compressed with bzip2, want gzip, zstd or nothing")
	default:
		return io.NopCloser(buffered), nil
	}
}

// isZstd knows a frame, and the skippable frames that zstd streams may begin with.
func isZstd(magic []byte) bool {
	if bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return true
	}
	return len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18})
}
