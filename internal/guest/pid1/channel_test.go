//go:build linux

package pid1

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A host that comes and goes is seen by nobody above the channel but as a pause.
func TestRedialled(t *testing.T) {
	dir := t.TempDir()
	attempts := 0
	r := &redialled{dial: func() (io.ReadWriteCloser, error) {
		if attempts++; attempts == 1 {
			return nil, io.ErrClosedPipe // the host is not there yet
		}
		return net.Dial("unix", filepath.Join(dir, "port"))
	}}
	l, err := net.Listen("unix", filepath.Join(dir, "port"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	read := make(chan string)
	go func() {
		for in := bufio.NewScanner(r); in.Scan(); {
			read <- in.Text()
		}
	}()
	for i := range 3 {
		host, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		host.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintln(host, "host", i)
		if got, want := <-read, fmt.Sprint("host ", i); got != want {
			t.Errorf("guest read %q, want %q", got, want)
		}
		if _, err := fmt.Fprintln(r, "guest", i); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(host).ReadString('\n'); got != fmt.Sprintln("guest", i) {
			t.Errorf("host read %q, %v", got, err)
		}
		host.Close()
	}
}

// What a broken connection did not take is written to the next one, from its beginning.
func TestRedialledWritesAgain(t *testing.T) {
	broken, next := net.Pipe()
	next.Close()
	guest, host := net.Pipe()
	conns := []io.ReadWriteCloser{broken, guest}
	r := &redialled{dial: func() (io.ReadWriteCloser, error) {
		conn := conns[0]
		conns = conns[1:]
		return conn, nil
	}}
	got := make(chan string)
	go func() {
		line, _ := bufio.NewReader(host).ReadString('\n')
		got <- line
	}()
	if _, err := io.WriteString(r, "frame\n"); err != nil {
		t.Fatal(err)
	}
	if line := <-got; line != "frame\n" {
		t.Errorf("got %q", line)
	}
}

func TestHasDevice(t *testing.T) {
	bus := t.TempDir()
	for i, kind := range []string{"0x0001\n", "0x0013\n", "nonsense"} {
		dir := filepath.Join(bus, fmt.Sprintf("virtio%d", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "device"), []byte(kind), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for kind, want := range map[uint64]bool{virtioVsock: true, virtioRNG: false} {
		if got := hasDevice(bus, kind); got != want {
			t.Errorf("device %d: got %v", kind, got)
		}
	}
}

func TestHasVsock(t *testing.T) {
	for _, device := range []string{"/nonexistent", os.DevNull} {
		if hasVsock(device) {
			t.Errorf("%s passes for a virtio socket", device)
		}
	}
	if _, err := openVsock("other"); err == nil {
		t.Error("a channel that does not exist has a port")
	}
}
