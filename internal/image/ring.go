package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A ring is how a blob gets from the process that fetches it to the one that decodes it without being copied
// on the way: slots of memory that both see, which the first fills and the second empties in turn. Beside them
// both have an end of a socket on which they say so, in messages of ringMessage bytes, and in front of the slots
// the second one leaves how far it is, to be found there when it is gone.
//
// The first trusts nothing that it reads from the ring.
const (
	ringSlots    = 4
	ringSlotSize = 128 << 10
	ringNotes    = 4 << 10
	ringSize     = ringNotes + ringSlots*ringSlotSize

	ringMessage = 9 // kind, and a number
)

// Kinds of messages.
const (
	ringFilled = 'f' // to the decoder: the next slot holds this many bytes; 0 is the end of the blob
	ringGrant  = 'g' // to the decoder: this many bytes may be written in all
	ringEmpty  = 'e' // from the decoder: the oldest slot is free again
	ringWant   = 'w' // from the decoder: it would write up to this many bytes in all
)

// notes are at the start of a ring. Strings in it are what the decoder says, so they are cut and quoted.
type notes struct {
	progress atomic.Int64 // moves as long as the decoder does
	length   atomic.Int64 // of entry
	entry    [256]byte
}

var _ [ringNotes - unsafe.Sizeof(notes{})]byte // fits

func notesOf(memory []byte) *notes {
	return (*notes)(unsafe.Pointer(unsafe.SliceData(memory))) //nolint:gosec // Mapped memory begins on a page, and the notes fit into it.
}

func (n *notes) setEntry(name string) {
	n.length.Store(int64(copy(n.entry[:], name)))
}

func (n *notes) lastEntry() string {
	return string(n.entry[:min(max(0, n.length.Load()), int64(len(n.entry)))])
}

// newRing makes memory and socket of a ring, and what is to be passed to the decoder. It must be closed.
func newRing(room func(int64) (int64, error)) (w *ringWriter, theirs []*os.File, err error) {
	fd, err := unix.MemfdCreate("blob", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("make shared memory: %w", err)
	}
	memory := os.NewFile(uintptr(fd), "blob")
	defer func() {
		if err != nil {
			err = errors.Join(err, memory.Close())
		}
	}()
	if err := memory.Truncate(ringSize); err != nil {
		return nil, nil, fmt.Errorf("make shared memory: %w", err)
	}
	// Were it cut while we fill it, the fault would be ours.
	if _, err := unix.FcntlInt(memory.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return nil, nil, fmt.Errorf("seal shared memory: %w", err)
	}
	bytes, err := mapRing(memory)
	if err != nil {
		return nil, nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make a socket: %w", err), unix.Munmap(bytes))
	}
	w = &ringWriter{
		memory: bytes, socket: os.NewFile(uintptr(fds[0]), "ring"), room: room,
		free: make(chan struct{}, ringSlots), done: make(chan struct{}),
	}
	for range ringSlots {
		w.free <- struct{}{}
	}
	go w.listen()
	return w, []*os.File{memory, os.NewFile(uintptr(fds[1]), "ring")}, nil
}

func mapRing(f *os.File) ([]byte, error) {
	b, err := unix.Mmap(int(f.Fd()), 0, ringSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map shared memory: %w", err)
	}
	return b, nil
}

func ringSlot(memory []byte, i int) []byte {
	at := ringNotes + i%ringSlots*ringSlotSize
	return memory[at : at+ringSlotSize : at+ringSlotSize]
}

func ringSend(socket *os.File, kind byte, n int64) error {
	var message [ringMessage]byte
	message[0] = kind
	binary.LittleEndian.PutUint64(message[1:], uint64(n))
	_, err := socket.Write(message[:])
	return err
}

func ringReceive(socket *os.File) (kind byte, n int64, err error) {
	var message [ringMessage]byte
	switch m, err := socket.Read(message[:]); {
	case err != nil:
		return 0, 0, err
	case m != ringMessage:
		return 0, 0, fmt.Errorf("message of %d bytes on a ring", m)
	}
	return message[0], int64(binary.LittleEndian.Uint64(message[1:])), nil
}

// A ringWriter is the end of the process that fetches.
type ringWriter struct {
	memory []byte
	socket *os.File
	slots  int // filled so far
	free   chan struct{}
	done   chan struct{} // closed when nothing more comes from the decoder

	// room says how much may be written in all, when the decoder would write up to want bytes.
	room    func(want int64) (int64, error)
	refused error // what room said, after done
}

// errRingClosed means that the decoder wants no more of the blob: it has ended, or its work has.
var errRingClosed = errors.New("decoder reads no further")

// listen takes the decoder's messages until it closes its end.
func (w *ringWriter) listen() {
	defer close(w.done)
	for {
		kind, n, err := ringReceive(w.socket)
		if err != nil {
			return
		}
		switch kind {
		case ringEmpty:
			select {
			case w.free <- struct{}{}:
			default: // it cannot free more than there are
			}
		case ringWant:
			granted, err := w.room(n)
			if err != nil {
				w.refused = err
				_ = w.socket.Close() // the decoder waits for an answer, and this is one
				return
			}
			if err := ringSend(w.socket, ringGrant, granted); err != nil {
				return
			}
		}
	}
}

// slot gives memory to fill. When the decoder frees none for as long as patience, the error is
// os.ErrDeadlineExceeded.
func (w *ringWriter) slot(patience time.Duration) ([]byte, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-w.free:
		return ringSlot(w.memory, w.slots), nil
	case <-w.done:
		return nil, errRingClosed
	case <-timer.C:
		return nil, os.ErrDeadlineExceeded
	}
}

// filled passes on the slot with n bytes in it; 0 is the end of the blob.
func (w *ringWriter) filled(n int) error {
	if n > 0 {
		w.slots++
	}
	err := ringSend(w.socket, ringFilled, int64(n))
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, os.ErrClosed) {
		return errRingClosed
	}
	return err
}

// stop lets the decoder, if it still reads, find that the blob goes no further.
func (w *ringWriter) stop() error {
	err := closed(w.socket.Close())
	<-w.done
	return err
}

// gave is why room gave none, once the decoder has ended.
func (w *ringWriter) gave() error {
	<-w.done
	return w.refused
}

func (w *ringWriter) close() error {
	return errors.Join(w.stop(), unix.Munmap(w.memory))
}

// A ringReader is the end of the decoder.
type ringReader struct {
	memory  []byte
	socket  *os.File
	filled  chan int      // bytes in each slot, in turn, and 0 at the end; closed when the socket is
	granted chan struct{} // has one when grant moved; closed likewise
	grant   atomic.Int64

	// Owned by Read.
	cur   []byte
	slots int
	begun bool // a slot that is not free yet
	ended bool
}

// errStopped is what a reader gives when the fetching end has gone before the end of the blob.
var errStopped = errors.New("the blob goes no further")

func openRing(memory, socket *os.File) (*ringReader, error) {
	bytes, err := mapRing(memory)
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	r := &ringReader{memory: bytes, socket: socket, filled: make(chan int, ringSlots+1), granted: make(chan struct{}, 1)}
	go r.listen()
	return r, nil
}

// listen ends when the socket does: at the latest when close closes it.
func (r *ringReader) listen() {
	defer close(r.granted)
	defer close(r.filled)
	for {
		kind, n, err := ringReceive(r.socket)
		if err != nil {
			return
		}
		if kind != ringGrant {
			r.filled <- int(min(n, ringSlotSize)) // there is a place for every slot
			continue
		}
		r.grant.Store(n)
		select {
		case r.granted <- struct{}{}:
		default:
		}
	}
}

func (r *ringReader) Read(p []byte) (int, error) {
	for len(r.cur) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		if r.begun {
			r.begun = false
			if err := ringSend(r.socket, ringEmpty, 0); err != nil {
				return 0, errStopped
			}
		}
		n, ok := <-r.filled
		if !ok {
			return 0, errStopped
		}
		if n == 0 {
			r.ended = true
			continue
		}
		r.cur = ringSlot(r.memory, r.slots)[:n]
		r.slots++
		r.begun = true
	}
	n := copy(p, r.cur)
	r.cur = r.cur[n:]
	return n, nil
}

// reserve waits until total bytes may be written.
func (r *ringReader) reserve(total int64) error {
	for r.grant.Load() < total {
		if err := ringSend(r.socket, ringWant, total); err != nil {
			return errStopped
		}
		if _, ok := <-r.granted; !ok && r.grant.Load() < total {
			return errStopped
		}
	}
	return nil
}

// stop makes Read and reserve end. After that, when none of them runs any more, unmap gives the memory back.
func (r *ringReader) stop() error { return closed(r.socket.Close()) }

// closed forgives that a socket was closed before.
func closed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func (r *ringReader) unmap() error { return unix.Munmap(r.memory) }
