package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// servePorts answers on UDP port 5300 with what it was sent, and on TCP port 9000 with what the PROXY header before
// a connection's own bytes says, which are sent back behind it.
func servePorts() error {
	packets, err := net.ListenPacket("udp", ":5300")
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := packets.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(b[:n], from)
		}
	}()
	l, err := net.Listen("tcp", ":9000") //nolint:gosec // The machine has one address, which it learns late.
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go afterHeader(conn)
		}
	}()
	return nil
}

// askUDP sends a text to an address over UDP until somebody answers, and tells what.
func askUDP(w http.ResponseWriter, r *http.Request) {
	conn, err := net.Dial("udp", r.FormValue("addr"))
	if err != nil {
		fmt.Fprintln(w, "no:", err)
		return
	}
	defer func() { _ = conn.Close() }()
	answer := make([]byte, 64<<10)
	for range 10 {
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		n := 0
		if _, err = conn.Write([]byte(r.FormValue("text"))); err == nil {
			if n, err = conn.Read(answer); err == nil {
				fmt.Fprintln(w, string(answer[:n]))
				return
			}
		}
	}
	fmt.Fprintln(w, "no:", err)
}

func afterHeader(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	client, err := readHeader(conn)
	if err != nil {
		fmt.Println("header:", err)
		return
	}
	fmt.Fprintln(conn, client)
	_, _ = io.Copy(conn, conn)
}

// readHeader reads version 2 of the header, of which it knows LOCAL and TCP over IPv4.
func readHeader(r io.Reader) (string, error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return "", err
	}
	if string(head[:12]) != "\r\n\r\n\x00\r\nQUIT\n" {
		return "", fmt.Errorf("got %q", head)
	}
	rest := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, rest); err != nil {
		return "", err
	}
	switch {
	case head[12] == 0x20:
		return "local", nil
	case head[12] == 0x21 && head[13] == 0x11 && len(rest) >= 12:
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte(rest[:4])), binary.BigEndian.Uint16(rest[8:]))
		return from.String(), nil
	default:
		return "", fmt.Errorf("command %#x, family %#x, %d bytes", head[12], head[13], len(rest))
	}
}
