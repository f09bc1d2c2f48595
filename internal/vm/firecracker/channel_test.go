package firecracker

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// newChannel returns a channel and a function by which a guest connects to it.
func newChannel(t *testing.T) (*channel, func() net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fc-") //nolint:usetesting // its path would be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	c := &channel{listener: l}
	c.accepted.Go(c.accept)
	t.Cleanup(c.close)
	return c, func() net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		return conn
	}
}

func mustDial(t *testing.T, c *channel) net.Conn {
	t.Helper()
	conn, err := c.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// wantTalk passes a word each way.
func wantTalk(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		sent := make(chan error, 1)
		go func() {
			_, err := io.WriteString(pair[0], "word")
			sent <- err
		}()
		got := make([]byte, 4)
		if _, err := io.ReadFull(pair[1], got); err != nil || string(got) != "word" {
			t.Fatalf("got %q, %v", got, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
}

func TestDialBeforeTheGuest(t *testing.T) {
	c, guest := newChannel(t)
	host := mustDial(t, c)
	host.SetDeadline(time.Now().Add(10 * time.Second))
	wantTalk(t, host, guest())
}

func TestDialAfterTheGuest(t *testing.T) {
	c, guest := newChannel(t)
	first, last := guest(), guest()
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, io.EOF) { // an answer to the second's arrival
		t.Errorf("the connection that the guest gave up: %v", err)
	}
	wantTalk(t, mustDial(t, c), last)
}

func TestDeadlinesBeforeTheGuest(t *testing.T) {
	c, guest := newChannel(t)
	host := mustDial(t, c)
	read := make(chan error)
	go func() {
		_, err := host.Read(make([]byte, 1))
		read <- err
	}()
	host.SetReadDeadline(time.Now().Add(-time.Second)) // whether it waits already or not
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	host.SetWriteDeadline(time.Now().Add(time.Millisecond))
	if _, err := host.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	// Deadlines go over to the guest's connection, and away when they are taken back.
	peer := guest()
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read with a guest: %v", err)
	}
	host.SetDeadline(time.Time{})
	wantTalk(t, host, peer)
	var ne net.Error
	host.SetReadDeadline(time.Now())
	if _, err := host.Read(make([]byte, 1)); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("read at last: %v", err)
	}
}

func TestCloseBeforeTheGuest(t *testing.T) {
	c, guest := newChannel(t)
	gone, host := mustDial(t, c), mustDial(t, c)
	if err := errors.Join(gone.Close(), gone.Close()); err != nil {
		t.Error(err)
	}
	if _, err := gone.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	wantTalk(t, host, guest()) // and the guest is not given to the one that is gone
}

func TestEndBeforeTheGuest(t *testing.T) {
	c, _ := newChannel(t)
	host := mustDial(t, c)
	c.close()
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
	if _, err := host.Write([]byte("x")); !errors.Is(err, vm.ErrEnded) {
		t.Errorf("write: %v", err)
	}
	if _, err := c.dial(); !errors.Is(err, vm.ErrEnded) {
		t.Errorf("dial: %v", err)
	}
}

// What the guest has said before the end is heard after it.
func TestLastWords(t *testing.T) {
	c, guest := newChannel(t)
	host, peer := mustDial(t, c), guest()
	wantTalk(t, host, peer)
	words := strings.Repeat("last words ", 1000)
	if _, err := io.WriteString(peer, words); err != nil {
		t.Fatal(err)
	}
	peer.Close()
	c.close()
	if got, err := io.ReadAll(host); err != nil || string(got) != words {
		t.Errorf("got %d of %d bytes, %v", len(got), len(words), err)
	}
}

func TestFaultMessage(t *testing.T) {
	for text, want := range map[string]string{
		`{"fault_message": "Invalid."}`: "Invalid.", `{"error": 1}`: `it answered "{\"error\": 1}"`, "<html>": `it answered "<html>"`, "": `it answered ""`,
	} {
		if got := faultMessage([]byte(text)); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
