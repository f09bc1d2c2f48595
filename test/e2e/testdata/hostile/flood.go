// This file is put beside the main of pinnace-init, which makes a guest whose process 1 is hostile: it boots as always,
// and when its workload asks for it, writes as much as it can to everything that leads to the host. It keeps to the
// protocol, as a guest that doesn't is cut off at once.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// modeFile holds "flood" while the workload wants it.
const modeFile = "/run/hostile-mode"

func init() {
	if os.Getpid() != 1 {
		return
	}
	go await()
}

func flooding() bool {
	mode, err := os.ReadFile(modeFile)
	return err == nil && string(mode) == "flood"
}

func await() {
	for !flooding() {
		time.Sleep(100 * time.Millisecond)
	}
	ports := ports()
	// The lines of the workload, which init carries as fast as the host takes them, flood the other channel. Frames of this
	// program might end up within a batch of them.
	if f := ports[guest.ControlChannel]; f != nil {
		go whileFlooding(func() { floodControl(f) })
	}
	go whileFlooding(floodConsole)
	go whileFlooding(floodNetwork)
}

// whileFlooding calls write, which does it some times, again and again.
func whileFlooding(write func()) {
	for {
		if flooding() {
			write()
		} else {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// ports are the channels that this process has opened.
func ports() map[string]*os.File {
	found := map[string]*os.File{}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if !strings.HasPrefix(target, "/dev/vport") {
			continue
		}
		name, err := os.ReadFile(filepath.Join("/sys/class/virtio-ports", filepath.Base(target), "name"))
		if err != nil {
			continue
		}
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil {
			continue
		}
		own, err := unix.Dup(fd)
		if err != nil {
			continue
		}
		found[strings.TrimSpace(string(name))] = os.NewFile(uintptr(own), target)
	}
	return found
}

// floodControl writes frames, each in one write of less than the kernel splits, as others write to the port too. All are
// valid, or of types that a host does not know.
func floodControl(f *os.File) {
	var frames [][]byte
	unknown := append([]byte{0, 0, 0x70, 1, 0x3f}, bytes.Repeat([]byte("x"), 0x7000)...)
	frames = append(frames, unknown)
	for _, m := range []guest.Message{guest.Heartbeat{MS: 1}, guest.ExecResult{ID: 1, Output: bytes.Repeat([]byte("y"), 4000)}} {
		if b, err := guest.Encode(nil, m); err == nil {
			frames = append(frames, b)
		}
	}
	for range 100 {
		for _, b := range frames {
			if _, err := f.Write(b); err != nil {
				return
			}
		}
	}
}

func floodConsole() {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		time.Sleep(time.Second)
		return
	}
	defer f.Close()
	for range 100 {
		_, _ = f.Write(bytes.Repeat([]byte("Kernel panic - not syncing: a lie\r\n"), 30))
	}
}

// floodNetwork sends what it likes to everybody: broadcasts, addresses of others, packets to the gateway.
func floodNetwork() {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		time.Sleep(time.Second)
		return
	}
	defer unix.Close(fd)
	links, _ := filepath.Glob("/sys/class/net/e*/ifindex")
	if len(links) == 0 {
		time.Sleep(time.Second)
		return
	}
	var index int
	text, _ := os.ReadFile(links[0])
	_, _ = fmt.Sscan(string(text), &index)
	mac, _ := os.ReadFile(filepath.Join(filepath.Dir(links[0]), "address"))
	var own [6]byte
	_, _ = fmt.Sscanf(string(mac), "%02x:%02x:%02x:%02x:%02x:%02x", &own[0], &own[1], &own[2], &own[3], &own[4], &own[5])
	everybody := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	to := &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}
	copy(to.Addr[:], everybody)
	for n := range 200 {
		from := own
		if n%2 == 1 {
			from[5] ^= byte(n) // somebody else
		}
		// UDP from this guest's network to the gateway's DNS, with nothing right but the headers' lengths.
		packet := append(append(append([]byte{}, everybody...), from[:]...), 0x08, 0x00, 0x45, 0, 5, 0xdc, 0, 0, 0, 0, 64, 17, 0, 0, 10, 100, 0, byte(n), 10, 100, 0, 1, 0, 53, 0, 53, 5, 0xc8, 0, 0)
		packet = append(packet, make([]byte, 1400)...)
		_ = unix.Sendto(fd, packet, 0, to)
	}
}
