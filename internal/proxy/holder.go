package proxy

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// tcpListen is how /proc/net/tcp writes the state of a listening socket, and a bound UDP one.
const (
	tcpListen = "0A"
	udpBound  = "07"
)

// portHolder names the process that has the port of address in ns, as "nginx (pid 812)"; "" when that can't
// be found out.
func portHolder(ns *namespace, address netip.AddrPort, protocol string) string {
	inodes := map[string]bool{}
	_ = ns.do(func() error {
		// A wildcard socket of either family can be what is in the way.
		for _, family := range []string{"", "6"} {
			listSockets("/proc/thread-self/net/"+protocol+family, address, inodes)
		}
		return nil
	})
	if len(inodes) == 0 {
		return ""
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		// Errors mean that the process has just ended, or is none of our business.
		dir := filepath.Join("/proc", p.Name(), "fd")
		fds, _ := os.ReadDir(dir)
		for _, fd := range fds {
			if target, _ := os.Readlink(filepath.Join(dir, fd.Name())); inodes[target] {
				name, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "comm"))
				return fmt.Sprintf("%s (pid %d)", strings.TrimSpace(string(name)), pid)
			}
		}
	}
	return ""
}

// listSockets adds "socket:[inode]" for every socket in the table that is in the way of address.
func listSockets(table string, address netip.AddrPort, inodes map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Scan() // the heading
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || (fields[3] != tcpListen && fields[3] != udpBound) {
			continue
		}
		local, ok := parseProcAddress(fields[1])
		if !ok || local.Port() != address.Port() {
			continue
		}
		a, b := local.Addr().Unmap(), address.Addr().Unmap()
		if a == b || a.IsUnspecified() || b.IsUnspecified() {
			inodes["socket:["+fields[9]+"]"] = true
		}
	}
}

// parseProcAddress reads "0100007F:1F90": words of the address in the machine's byte order, which is little
// endian wherever Pinnace runs, and the port.
func parseProcAddress(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(b, 4) {
		slices.Reverse(word)
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(n)), ok
}
