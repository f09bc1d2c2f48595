package proxy

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// copySize is the buffer for what comes in small pieces. A piece that fills it is taken for the beginning
	// of a stream.
	copySize = 16 << 10
	// pipeSize is the kernel's memory between two sockets of a stream, and the most that it moves at once.
	pipeSize = 256 << 10
	// idlePipes is how many pipes are kept that no stream needs just now.
	idlePipes = 64
)

// A flow moves the bytes of one direction. Small pieces, as of requests and answers, are read and written: that
// costs the fewest calls. When a piece fills the buffer, the rest goes from socket to socket inside the kernel
// (splice). In both cases memory is held only while bytes are under way: an idle connection has neither buffer
// nor pipe.
type flow struct {
	src, dst       *conn
	bytes, spliced *atomic.Uint64

	buffer    *[copySize]byte
	pipe      *pipe
	streaming bool
	// n is what the last call of fill has moved, or drain has still to move; err is why it could not.
	n, done int
	err     error
}

// run returns nil at the end of the source.
func (f *flow) run() error {
	defer f.release()
	fill, drain := f.fill, f.drain // one allocation for each, not one for each call
	for {
		if err := f.src.raw.Read(fill); err != nil {
			return err
		}
		if f.err != nil || f.n == 0 {
			return f.err
		}
		f.done = 0
		if err := f.dst.raw.Write(drain); err != nil {
			return err
		}
		if f.err != nil {
			return f.err
		}
		f.bytes.Add(uint64(f.n))
		if f.pipe != nil {
			f.spliced.Add(uint64(f.n))
		} else if f.n == copySize {
			f.streaming = true
			f.release()
		}
	}
}

// fill takes what the source has, or says that it has nothing yet.
func (f *flow) fill(fd uintptr) bool {
	for {
		if f.streaming {
			f.n, f.err = f.fillPipe(int(fd))
		} else {
			if f.buffer == nil {
				f.buffer = buffers.Get().(*[copySize]byte)
			}
			f.n, f.err = rawIO(unix.SYS_READ, fd, f.buffer[:])
		}
		switch {
		case errors.Is(f.err, unix.EINTR):
			continue
		case errors.Is(f.err, unix.EAGAIN):
			// What waits needs no memory.
			f.release()
			return false
		}
		f.n = max(f.n, 0)
		return true
	}
}

func (f *flow) fillPipe(fd int) (int, error) {
	if f.pipe == nil {
		p, err := pipes.get()
		if err != nil {
			// Without descriptors for a pipe, bytes are copied.
			f.streaming = false
			return 0, unix.EINTR
		}
		f.pipe = p
	}
	n, err := rawSplice(fd, f.pipe.in, pipeSize)
	f.pipe.holds = n
	return n, err
}

// drain moves on what fill has taken, or says that the destination takes no more just now.
func (f *flow) drain(fd uintptr) bool {
	for f.done < f.n {
		var n int
		if f.pipe != nil {
			n, f.err = rawSplice(f.pipe.out, int(fd), f.n-f.done)
		} else {
			n, f.err = rawIO(unix.SYS_WRITE, fd, f.buffer[f.done:f.n])
		}
		switch {
		case f.err == nil:
			f.done += n
			if f.pipe != nil {
				f.pipe.holds -= n
			}
		case errors.Is(f.err, unix.EINTR):
		case errors.Is(f.err, unix.EAGAIN):
			return false
		default:
			return true
		}
	}
	f.err = nil
	return true
}

// release gives memory back.
func (f *flow) release() {
	if f.buffer != nil {
		buffers.Put(f.buffer)
		f.buffer = nil
	}
	if f.pipe != nil {
		pipes.put(f.pipe)
		f.pipe = nil
	}
}

var buffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// A pipe is where splice keeps bytes between two sockets.
type pipe struct {
	in, out int
	holds   int
}

// A pipePool keeps some empty pipes for the next stream: making one costs as much as moving a good many bytes.
type pipePool struct {
	mu   sync.Mutex
	idle []*pipe // guarded by mu
}

var pipes pipePool

func (p *pipePool) get() (*pipe, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		one := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return one, nil
	}
	p.mu.Unlock()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	// The kernel may refuse more than its default to a process without privileges; that is only slower.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{out: fds[0], in: fds[1]}, nil
}

// put takes a pipe back. One that still holds bytes of somebody's must not come to another.
func (p *pipePool) put(one *pipe) {
	if one.holds == 0 {
		p.mu.Lock()
		if len(p.idle) < idlePipes {
			p.idle = append(p.idle, one)
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
	}
	_ = errors.Join(unix.Close(one.in), unix.Close(one.out))
}
