package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/inflate"
)

// A layerFile is where a layer is in the store.
type layerFile struct {
	diffID   string
	tar, idx string
	blob     descriptor
	size     int64 // of the tar, once it is there
}

func (s *Store) layerFile(diffID string, blob descriptor) (*layerFile, error) {
	digits, err := digestHex(diffID)
	if err != nil {
		return nil, err
	}
	return &layerFile{
		diffID: diffID, blob: blob,
		tar: s.path("layers", digits+".tar"), idx: s.path("layers", digits+".idx"),
	}, nil
}

// check finds out whether the layer is there: a tar of the size that an intact index says. Whether its
// bytes are still the right ones is not read.
func (l *layerFile) check() (bool, error) {
	info, err := os.Stat(l.tar)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	b, err := os.ReadFile(l.idx)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	size, err := checkIndex(b)
	if err != nil || size != info.Size() {
		return false, nil // damaged is as good as absent: the layer is made again
	}
	l.size = size
	return true, nil
}

// ensure makes the layer be there, from the tar that is there already if only the index is missing,
// otherwise from src.
func (s *Store) ensure(ctx context.Context, src Source, l *layerFile, report func(int64)) error {
	if ok, err := l.check(); ok || err != nil {
		return err
	}
	if s.reindex(ctx, l) == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return s.fetch(ctx, src, l, report)
}

// reindex makes the index of a tar that is there. It reads all of it, so a damaged tar is found.
func (s *Store) reindex(ctx context.Context, l *layerFile) error {
	f, err := os.Open(l.tar)
	if err != nil {
		return err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	x, err := scan(f, io.Discard, l.diffID, s.limits)
	if err != nil {
		return err
	}
	l.size = x.size
	return s.write(l.idx, x.encode())
}

// fetch gets the layer's blob and puts tar and index into the store. The index goes first: whoever sees
// the tar finds the index.
func (s *Store) fetch(ctx context.Context, src Source, l *layerFile, report func(int64)) error {
	f, err := s.create()
	if err != nil {
		return err
	}
	x, err := s.receive(ctx, src, l, s.metered(ctx, f), report)
	if err != nil {
		return errors.Join(err, durable.Discard(f))
	}
	if err := s.write(l.idx, x.encode()); err != nil {
		return errors.Join(fmt.Errorf("store index: %w", err), durable.Discard(f))
	}
	if err := durable.Commit(f, l.tar); err != nil {
		return fmt.Errorf("store layer: %w", err)
	}
	l.size = x.size
	return nil
}

// receive runs a blob through its stages: fetch and hash, decompress, hash and write and list.
func (s *Store) receive(ctx context.Context, src Source, l *layerFile, dst io.Writer, report func(int64)) (*index, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := src.Blob(ctx, l.blob.Digest, l.blob.Size)
	if err != nil {
		if l.blob.foreign() {
			return nil, fmt.Errorf("fetch foreign layer, which is taken from the image's own registry only: %w", err)
		}
		return nil, fmt.Errorf("fetch: %w", err)
	}
	defer body.Close()
	blob := newBlobReader(ctx, body, l.blob, report)
	fetched := newReadAhead(blob)
	defer fetched.Close()
	defer cancel() // so that the goroutine's read ends before Close waits for it

	x, err := s.unpack(fetched, dst, l.diffID)
	if err != nil && !blame(err) {
		return nil, err
	}
	// The rest of the blob: nothing after a good one; after one that makes no sense, what it takes to tell
	// whether it is the right one.
	switch _, rest := io.CopyN(io.Discard, fetched, maxBlame); {
	case errors.Is(rest, io.EOF):
		if bad := blob.verify(); bad != nil {
			return nil, bad
		}
		return x, err
	case rest != nil:
		return nil, fmt.Errorf("fetch: %w", rest)
	case err == nil:
		return nil, corrupt("%s goes on after its content", l.blob.Digest)
	default:
		return nil, err
	}
}

// maxBlame is how much more of a blob that makes no sense is read to find out whether it is corrupt.
const maxBlame = 64 << 20

// blame reports whether an error can be the fault of corrupt bytes.
func blame(err error) bool {
	return !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNoSpace) && !errors.As(err, new(*fs.PathError))
}

func (s *Store) unpack(src io.Reader, dst io.Writer, diffID string) (*index, error) {
	raw, err := decompress(src)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	ahead := newReadAhead(raw)
	x, err := scan(ahead, dst, diffID, s.limits)
	ahead.Close()
	if errors.As(err, new(*inflate.Error)) {
		err = refuse("decompress: %w", err)
	}
	return x, errors.Join(err, raw.Close())
}
