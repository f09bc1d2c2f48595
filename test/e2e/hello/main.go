// Command hello is the smallest workload that serves HTTP: a static program in an image of nothing else. It answers
// every request with what is known of init's memory, and floods its output when it is told to.
//
//	GET /             the lines VmHWM and VmRSS of /proc/1/status
//	GET /flood?COUNT  the same, after COUNT lines of 100 bytes have gone to standard output
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	l, err := net.Listen("tcp", ":8080") //nolint:gosec // The machine has one address, which it learns late.
	if err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "hello:", err)
			os.Exit(1)
		}
		go answer(conn)
	}
}

func answer(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	words := strings.Fields(line)
	if len(words) < 2 {
		return
	}
	if count, ok := strings.CutPrefix(words[1], "/flood?"); ok {
		n, err := strconv.Atoi(count)
		if err != nil {
			return
		}
		flood(n)
	}
	text := memory()
	fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
}

// flood writes what costs the workload nothing, so that it is the lines' way that is measured.
func flood(n int) {
	const perWrite = 300
	block := bytes.Repeat(append(bytes.Repeat([]byte("x"), 99), '\n'), perWrite)
	for left := n; left > 0; left -= perWrite {
		if _, err := os.Stdout.Write(block[:100*min(left, perWrite)]); err != nil {
			return
		}
	}
}

func memory() string {
	status, err := os.ReadFile("/proc/1/status")
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmHWM") || strings.HasPrefix(line, "VmRSS") {
			out.WriteString(line)
		}
	}
	return out.String()
}
