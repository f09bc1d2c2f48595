package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
)

// A layerFile is where a layer is in the store.
type layerFile struct {
	diffID   string
	tar, idx string
	blob     descriptor
	size     int64 // of the tar, once it is there
	memo     *memo
}

func (s *Store) layerFile(diffID string, blob descriptor) (*layerFile, error) {
	digits, err := digestHex(diffID)
	if err != nil {
		return nil, err
	}
	return &layerFile{
		diffID: diffID, blob: blob, memo: &s.memo,
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
	size, err := l.checkIndex()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errIndex) {
		return false, nil // damaged is as good as absent: the layer is made again
	}
	if err != nil || size != info.Size() {
		return false, err
	}
	l.size = size
	return true, nil
}

// checkIndex gives the size of the tar that an intact index says.
func (l *layerFile) checkIndex() (int64, error) {
	info, err := os.Stat(l.idx)
	if err != nil {
		return 0, err
	}
	if size, ok := l.memo.look(l.idx, info); ok {
		return size, nil
	}
	f, err := os.Open(l.idx)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var sum indexCheck
	if _, err := io.CopyBuffer(struct{ io.Writer }{&sum}, struct{ io.Reader }{f}, make([]byte, 128<<10)); err != nil {
		return 0, err
	}
	size, err := sum.tarSize()
	if err != nil {
		return 0, err
	}
	l.memo.keep(l.idx, info, size)
	return size, nil
}

// ensure makes the layer be there, from the tar that is there already if only the index is missing,
// otherwise from src.
func (s *Store) ensure(ctx context.Context, src Source, w *worker, l *layerFile, report func(int64)) error {
	if ok, err := l.check(); ok || err != nil {
		return err
	}
	if s.reindex(ctx, w, l) == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return s.fetch(ctx, src, w, l, report)
}

// reindex makes the index of a tar that is there. It reads all of it, so a damaged tar is found.
func (s *Store) reindex(ctx context.Context, w *worker, l *layerFile) error {
	tar, err := os.Open(l.tar)
	if err != nil {
		return err
	}
	defer tar.Close()
	files, err := s.createAll(l.idx)
	if err != nil {
		return err
	}
	ring, theirs, err := newRing(func(int64) (int64, error) { return 0, nil })
	if err != nil {
		return errors.Join(err, discardAll(files))
	}
	size, fed, err := w.handOver(ctx, handOver{
		name: "layer " + l.diffID, ring: ring, src: &untilDone{ctx, tar}, verify: func() error { return nil },
		request: &request{Task: taskIndex, DiffID: l.diffID, Limits: s.limits}, theirs: theirs, files: []*os.File{files[0].file},
	})
	if err = errors.Join(fed, err, ring.close()); err != nil {
		return errors.Join(err, discardAll(files))
	}
	l.size = size
	return publish(files)
}

// untilDone is a reader that ends with its caller.
type untilDone struct {
	ctx context.Context
	src io.Reader
}

func (r *untilDone) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.src.Read(p)
}

// fetch gets the layer's blob and puts tar and index into the store. The index gets its name first: whoever
// sees the tar most likely finds the index, and makes it again where a crash left none.
func (s *Store) fetch(ctx context.Context, src Source, w *worker, l *layerFile, report func(int64)) error {
	files, err := s.createAll(l.idx, l.tar)
	if err != nil {
		return err
	}
	idx, tar := files[0].file, files[1].file
	size, err := s.receive(ctx, src, w, l, tar, idx, report)
	if err == nil {
		err = tar.Truncate(size) // the last page was written whole
	}
	if err != nil {
		return errors.Join(err, discardAll(files))
	}
	if err := publish(files); err != nil {
		return fmt.Errorf("store layer: %w", err)
	}
	l.size = size
	return nil
}

// receive fetches a blob and has it decoded. Fetching and hashing are this process's part, all else is the
// confined one's.
func (s *Store) receive(ctx context.Context, src Source, w *worker, l *layerFile, tar, idx *os.File, report func(int64)) (size int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := src.Blob(ctx, l.blob.Digest, l.blob.Size)
	if err != nil {
		if l.blob.foreign() {
			return 0, fmt.Errorf("fetch foreign layer, which is taken from the image's own registry only: %w", err)
		}
		return 0, fmt.Errorf("fetch: %w", err)
	}
	defer body.Close()
	ring, theirs, err := newRing(s.mayWrite(ctx))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, ring.close()) }()
	unbuffered(tar)
	blob := newBlobReader(ctx, body, l.blob, report)
	size, fed, err := w.handOver(ctx, handOver{
		name: "layer " + l.blob.Digest, ring: ring, src: blob, verify: blob.verify,
		request: &request{Task: taskLayer, DiffID: l.diffID, Limits: s.limits}, theirs: theirs, files: []*os.File{tar, idx},
	})
	switch {
	case fed != nil && !errors.Is(fed, errRingClosed):
		return 0, fed
	case ring.gave() != nil:
		return 0, ring.gave()
	case err == nil && fed == nil:
		if size < sectorSize || size > s.limits.LayerBytes {
			return 0, fmt.Errorf("%w: it says that the layer has %d bytes", errConfined, size)
		}
		return size, nil
	case err == nil:
		return 0, fmt.Errorf("%w: it ended before its blob did", errConfined)
	case fed != nil && errors.Is(err, ErrRefused):
		return 0, blame(blob, err)
	}
	return 0, err
}

// A handOver is bytes that the confined process is to read.
type handOver struct {
	name    string // of what it is, for messages
	ring    *ringWriter
	src     io.Reader
	verify  func() error // called at the end of src, before the process is told that this was all
	request *request
	theirs  []*os.File // the process's end of ring, which handOver closes here
	files   []*os.File // what it is to write
}

// handOver has a request worked on, with all that src gives. fed is what ended the giving, nil when it was all
// given; errRingClosed when the process wanted no more, for which err is the reason.
func (w *worker) handOver(ctx context.Context, h handOver) (size int64, fed, err error) {
	j, err := w.begin(ctx, h.name, notesOf(h.ring.memory), h.request, slices.Concat(h.theirs, h.files)...)
	// Were its end of the ring open here as well, nobody would notice that the process has closed it.
	closeFiles(h.theirs)
	if err != nil {
		return 0, err, err
	}
	fed = w.feed(h.ring, h.src, h.verify)
	if fed != nil && !errors.Is(fed, errRingClosed) {
		// The process finds that there is no more; what it says about that is of no interest.
		stopped := h.ring.stop()
		_, _ = w.end(j)
		return 0, errors.Join(fed, stopped), nil
	}
	done, err := w.end(j)
	return done.Size, fed, err
}

// feed moves src into the ring, and verifies it before it says that it was all.
func (w *worker) feed(ring *ringWriter, src io.Reader, verify func() error) error {
	for {
		slot, err := ring.slot(w.patience)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.hung()
			err = errRingClosed
		}
		if err != nil {
			return err
		}
		n, end := fill(src, slot)
		if end != nil && !errors.Is(end, io.EOF) {
			return fetchError(end)
		}
		if n > 0 {
			if err := ring.filled(n); err != nil {
				return err
			}
		}
		if end != nil {
			if err := verify(); err != nil {
				return err
			}
			return ring.filled(0)
		}
	}
}

func fetchError(err error) error {
	if errors.Is(err, ErrCorrupt) {
		return err
	}
	return fmt.Errorf("fetch: %w", err)
}

// maxBlame is how much more of a blob that makes no sense is read to find out whether it is corrupt.
const maxBlame = 64 << 20

// blame finds out whether a blob that was refused before its end is the right one: the rest is read for its
// digest.
func blame(blob *blobReader, refused error) error {
	switch _, rest := io.CopyN(io.Discard, blob, maxBlame); {
	case errors.Is(rest, io.EOF):
		if bad := blob.verify(); bad != nil {
			return bad
		}
		return refused
	case rest != nil:
		return fetchError(rest)
	}
	return refused
}
