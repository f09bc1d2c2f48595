package image

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/erofs"
	"github.com/pinnacehq/pinnace/internal/inflate"
)

// This file is what runs in the confined process: everything that reads what strangers made.

// ConfinedPart is the name under which sandbox.Main is told of Confined.
const ConfinedPart = "image"

// Confined does the parsing of a store that is in another process, until conn ends. It needs nothing but the
// files that come over it.
func Confined(conn *net.UnixConn) error {
	budget := newBudget(debug.SetMemoryLimit)
	return serve(conn, budget)
}

// serve does each work in a goroutine, as many at a time as the store asks for, and waits for all.
func serve(conn *net.UnixConn, budget *budget) error {
	var works sync.WaitGroup
	defer works.Wait()
	var answer sync.Mutex
	buffer, oob := make([]byte, maxRequest), make([]byte, unix.CmsgSpace(4*maxFiles))
	for {
		r, files, err := receiveRequest(conn, buffer, oob)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			closeFiles(files)
			return err
		}
		works.Go(func() {
			done := r.do(files, budget)
			answer.Lock()
			defer answer.Unlock()
			_ = send(conn, done) // when the connection is gone, nobody waits for it
		})
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // opened by the store, which syncs what was written
	}
}

// do does a work. A fault in it is not one of the others in this process.
func (r *request) do(files []*os.File, budget *budget) (done reply) {
	done.ID = r.ID
	defer closeFiles(files)
	defer func() {
		if fault := recover(); fault != nil {
			done.Fault = newFault(newPanicError(fault))
		}
	}()
	var err error
	switch {
	case r.Task == taskLayer && len(files) == 4:
		done.Size, err = r.layer(files[0], files[1], files[2], files[3], budget)
	case r.Task == taskIndex && len(files) == 3:
		done.Size, err = r.layer(files[0], files[1], nil, files[2], budget)
	case r.Task == taskMerge && len(files) == 1+len(r.Layers):
		done.Metadata, err = r.merge(files[0], files[1:], budget)
	default:
		err = fmt.Errorf("work %q with %d files", r.Task, len(files))
	}
	done.Fault = newFault(err)
	return done
}

// layer decodes a blob, writes the tar that it holds, and its index. Without a file for the tar the blob is one,
// and is there already.
func (r *request) layer(memory, socket, tar, idx *os.File, budget *budget) (size int64, err error) {
	defer budget.take(layerBytes)()
	ring, err := openRing(memory, socket)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, ring.stop(), ring.unmap()) }()
	at := notesOf(ring.memory)
	var content pieces
	var dst sink
	if tar == nil {
		content, dst = newReaderPieces(ring), nowhere{at}
	} else {
		var free func()
		if content, free, err = decompress(ring); err != nil {
			return 0, decodeError(err)
		}
		defer free()
		dst = &ringSink{pageWriter{file: tar}, ring, at}
	}
	decoded := newAhead(content)
	defer func() {
		err = errors.Join(err, ring.stop()) // so that the goroutine's read ends
		decoded.close()
	}()
	x, err := scan(decoded, dst, &indexFile{file: idx}, r.DiffID, r.Limits, at)
	if err != nil {
		return 0, decodeError(err)
	}
	return x.size, nil
}

// decodeError makes what a decoder says about a blob a refusal.
func decodeError(err error) error {
	known := errors.Is(err, ErrRefused) || errors.Is(err, errStopped) ||
		errors.As(err, new(*os.PathError)) || errors.As(err, new(*panicError)) || errors.As(err, new(*os.SyscallError))
	if !known || errors.As(err, new(*inflate.Error)) {
		return refuse("decompress: %w", err)
	}
	return err
}

// merge puts layers over each other and writes the file system that they make.
func (r *request) merge(out *os.File, indexes []*os.File, budget *budget) (*metadataReport, error) {
	t := newTree(r.Limits)
	devices := make([]erofs.Device, len(r.Layers))
	for i, l := range r.Layers {
		x, err := readIndexFile(indexes[i])
		if err != nil {
			return nil, fmt.Errorf("layer %d: read index: %w", i+1, err)
		}
		defer budget.take(int64(x.count) * entryBytes)()
		if err := t.apply(x, uint16(i+1)); err != nil {
			return nil, fmt.Errorf("layer %d of %d (%s): %w", i+1, len(r.Layers), l.DiffID, err)
		}
		devices[i] = erofs.Device{Tag: strings.TrimPrefix(l.DiffID, digestPrefix), Size: l.Size}
	}
	t.prune()
	sum, crc := sha256.New(), crc32.New(crc32.MakeTable(crc32.Castagnoli))
	size := new(counter)
	buffered := bufio.NewWriterSize(io.MultiWriter(out, sum, crc, size), 1<<20)
	err := erofs.Write(buffered, t.Tree, erofs.Options{BlockSize: sectorSize, UUID: r.UUID, Devices: devices})
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return nil, fmt.Errorf("write metadata: %w", err)
	}
	return &metadataReport{SHA256: hex.EncodeToString(sum.Sum(nil)), CRC32C: crc.Sum32(), Size: int64(*size)}, nil
}

// A ringSink writes a layer, as far as the other end of the ring lets it.
type ringSink struct {
	pageWriter
	ring *ringReader
	at   *notes
}

func (s *ringSink) reserve(total int64) error { return s.ring.reserve(total) }

func (s *ringSink) write(data []byte, _ int) error {
	s.at.progress.Add(1)
	return s.pageWriter.write(data)
}

// A nowhere is a sink for what is written already.
type nowhere struct{ at *notes }

func (n nowhere) reserve(int64) error { return nil }
func (n nowhere) finish() error       { return nil }

func (n nowhere) write([]byte, int) error {
	n.at.progress.Add(1)
	return nil
}

// A counter is a writer that counts.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// What the process may take, which is said in docs/design/layers.md: so much by itself, for each layer that it
// works on, and for each entry that it merges.
const (
	baseBytes  = 64 << 20
	layerBytes = 2 << 20
	entryBytes = 300
)

// A budget keeps the garbage collector within what there is.
type budget struct {
	mu  sync.Mutex
	set func(int64) int64
	sum int64 // guarded by mu
}

func newBudget(set func(int64) int64) *budget {
	b := &budget{set: set}
	b.take(0)
	return b
}

// take adds to the budget until the function that it returns is called.
func (b *budget) take(n int64) func() {
	b.add(n)
	return func() { b.add(-n) }
}

func (b *budget) add(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum += n
	// A part of the base is for what Go does not count: the binary itself, and the shared memory.
	b.set(baseBytes/2 + b.sum)
}
