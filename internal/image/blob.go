package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
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
