package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
)

// The header of PROXY protocol v2, https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt: a signature,
// version and command, family, the length of the rest; addresses; then extras.
const (
	headerSignature = "\r\n\r\n\x00\r\nQUIT\n"
	headerFixed     = 16
	maxHeader       = 4096 // extras included; what load balancers send has some hundred bytes

	commandLocal = 0x20
	commandProxy = 0x21
	familyTCP4   = 0x11
	familyTCP6   = 0x21
	extraCRC32C  = 0x03
)

// errHeader means that a trusted load balancer did not begin with a header.
var errHeader = errors.New("no valid header of PROXY protocol v2")

// LocalHeader begins a connection that is made for nobody but oneself: a probe.
func LocalHeader() []byte {
	return append([]byte(headerSignature), commandLocal, 0, 0, 0)
}

// proxyHeader begins a connection that is made for from, which has connected to to.
func proxyHeader(from, to netip.AddrPort) []byte {
	b := append([]byte(headerSignature), commandProxy)
	if from.Addr().Is4() && to.Addr().Is4() {
		b = append(b, familyTCP4, 0, 12)
	} else {
		// As16 maps an IPv4 address into IPv6, should there be one of each.
		b = append(b, familyTCP6, 0, 36)
	}
	add := func(a netip.Addr) {
		if b[13] == familyTCP4 {
			b = append(b, a.AsSlice()...)
			return
		}
		sixteen := a.As16()
		b = append(b, sixteen[:]...)
	}
	add(from.Addr())
	add(to.Addr())
	b = binary.BigEndian.AppendUint16(b, from.Port())
	return binary.BigEndian.AppendUint16(b, to.Port())
}

// readHeader reads a header and nothing beyond it. Without an address in it, as of the load balancer's own
// probes, from is not valid.
func readHeader(r io.Reader) (from, to netip.AddrPort, err error) {
	b := make([]byte, headerFixed, headerFixed+256)
	if _, err := io.ReadFull(r, b); err != nil {
		return from, to, err
	}
	n := int(binary.BigEndian.Uint16(b[14:]))
	switch {
	case string(b[:12]) != headerSignature:
		return from, to, errHeader
	case b[12] != commandLocal && b[12] != commandProxy:
		return from, to, fmt.Errorf("%w: version and command are %#x", errHeader, b[12])
	case n > maxHeader:
		return from, to, fmt.Errorf("%w: %d bytes is more than %d", errHeader, n, maxHeader)
	}
	b = append(b, make([]byte, n)...)
	if _, err := io.ReadFull(r, b[headerFixed:]); err != nil {
		return from, to, err
	}
	return parseHeader(b)
}

// parseHeader reads a header whose fixed part is right and whose length is that of b.
func parseHeader(b []byte) (from, to netip.AddrPort, err error) {
	rest := reader(b[headerFixed:])
	size := 0
	switch b[13] {
	case familyTCP4:
		size = 4
	case familyTCP6:
		size = 16
	}
	if size > 0 {
		addresses, ok := rest.take(2*size + 4)
		if !ok {
			return from, to, fmt.Errorf("%w: addresses are cut off", errHeader)
		}
		if b[12] == commandProxy {
			src, _ := netip.AddrFromSlice(addresses[:size])
			dst, _ := netip.AddrFromSlice(addresses[size : 2*size])
			from = netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(addresses[2*size:]))
			to = netip.AddrPortFrom(dst.Unmap(), binary.BigEndian.Uint16(addresses[2*size+2:]))
		}
	} else if b[13] != 0 {
		// Of sockets and datagrams there is nothing to learn, and where the extras begin is not worth knowing.
		return from, to, nil
	}
	for len(rest) > 0 {
		kind, _ := rest.number(1)
		body, ok := rest.block(2)
		if !ok {
			return from, to, fmt.Errorf("%w: an extra is cut off", errHeader)
		}
		if kind == extraCRC32C && !sumIsRight(b, body, len(b)-len(rest)-len(body)) {
			return from, to, fmt.Errorf("%w: its checksum is wrong", errHeader)
		}
	}
	return from, to, nil
}

// sumIsRight checks the sum at b[at:], which was made with zeros in its own place.
func sumIsRight(b, sum []byte, at int) bool {
	if len(sum) != 4 {
		return false
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	got := crc32.Update(0, table, b[:at])
	got = crc32.Update(got, table, make([]byte, 4))
	got = crc32.Update(got, table, b[at+4:])
	return got == binary.BigEndian.Uint32(sum)
}
