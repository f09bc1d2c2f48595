package image

import "io"

// A readAhead reads from another reader in a goroutine of its own, a few buffers ahead, so that the stages
// of a pull overlap: fetching and hashing, decompressing, hashing and writing.
type readAhead struct {
	full chan chunk
	free chan []byte
	stop chan struct{}
	done chan struct{}

	// Owned by the reader's goroutine.
	buffer []byte // what cur is a part of
	cur    []byte
	err    error
}

type chunk struct {
	data []byte
	err  error // after data
}

const (
	readAheadBuffers = 4
	readAheadSize    = 128 << 10
)

func newReadAhead(src io.Reader) *readAhead {
	r := &readAhead{
		full: make(chan chunk, readAheadBuffers),
		free: make(chan []byte, readAheadBuffers),
		stop: make(chan struct{}),
		done: make(chan struct{}),
	}
	for range readAheadBuffers {
		r.free <- make([]byte, readAheadSize)
	}
	go r.run(src)
	return r
}

func (r *readAhead) run(src io.Reader) {
	defer close(r.done)
	for {
		var buffer []byte
		select {
		case buffer = <-r.free:
		case <-r.stop:
			return
		}
		n, err := fill(src, buffer)
		r.full <- chunk{data: buffer[:n], err: err} // there are as many places as buffers
		if err != nil {
			return
		}
	}
}

func (r *readAhead) Read(p []byte) (int, error) {
	for len(r.cur) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if r.buffer != nil {
			r.free <- r.buffer[:cap(r.buffer)]
			r.buffer = nil
		}
		c := <-r.full
		r.buffer, r.cur, r.err = c.data, c.data, c.err
	}
	n := copy(p, r.cur)
	r.cur = r.cur[n:]
	return n, nil
}

// Close waits for the goroutine, which ends when the source's Read returns. Read must not be called again.
func (r *readAhead) Close() {
	close(r.stop)
	<-r.done
}

// fill reads until buffer is full or src ends. Unlike io.ReadFull it leaves src's error as it is: a cut
// stream stays one, and the end is the end.
func fill(src io.Reader, buffer []byte) (n int, err error) {
	for n < len(buffer) && err == nil {
		var m int
		m, err = src.Read(buffer[n:])
		n += m
	}
	return n, err
}
