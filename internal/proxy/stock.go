package proxy

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Entering a namespace to make a socket costs more than the socket, so a thread that is inside makes several
// when many are asked for: twice as many as the last time if that was less than restockWithin ago.
const (
	maxStock      = 64
	restockWithin = time.Second
)

// A stock is unused sockets of a namespace. They keep the namespace alive, which is why a few do and why close
// comes before the namespace is let go.
type stock struct {
	mu sync.Mutex
	// Guarded by mu.
	closed  bool
	shelves [4]shelf
}

// A shelf has the sockets of one kind.
type shelf struct {
	fds       []int
	batch     int
	restocked time.Time
}

func shelfOf(family, kind int) int {
	n := 0
	if family == unix.AF_INET6 {
		n++
	}
	if kind == unix.SOCK_DGRAM {
		n += 2
	}
	return n
}

// socket is a new socket inside n that does not block.
func (n *namespace) socket(family, kind int) (int, error) {
	flags := kind | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	if n == nil {
		return unix.Socket(family, flags, 0)
	}
	at := shelfOf(family, kind)
	fd, batch := n.stock.take(at)
	if fd >= 0 {
		return fd, nil
	}
	made := make([]int, 0, batch)
	err := n.do(func() error {
		for range batch {
			fd, err := unix.Socket(family, flags, 0)
			if err != nil {
				return err
			}
			made = append(made, fd)
		}
		return nil
	})
	if len(made) == 0 {
		return -1, err
	}
	n.stock.add(at, made[1:])
	return made[0], nil
}

// take returns a socket, or how many to make.
func (s *stock) take(at int) (fd, batch int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	on := &s.shelves[at]
	if last := len(on.fds) - 1; last >= 0 {
		fd = on.fds[last]
		on.fds = on.fds[:last]
		return fd, 0
	}
	now := time.Now()
	if now.Sub(on.restocked) < restockWithin {
		on.batch = min(max(2*on.batch, 2), maxStock)
	} else {
		on.batch = 1
	}
	on.restocked = now
	return -1, on.batch
}

func (s *stock) add(at int, fds []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	on := &s.shelves[at]
	for _, fd := range fds {
		if s.closed || len(on.fds) >= maxStock {
			_ = unix.Close(fd)
			continue
		}
		on.fds = append(on.fds, fd)
	}
}

func (s *stock) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for i := range s.shelves {
		for _, fd := range s.shelves[i].fds {
			_ = unix.Close(fd)
		}
		s.shelves[i].fds = nil
	}
}
