package proxy

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"net/netip"
	"strings"
	"testing"
)

func TestHeaderBytes(t *testing.T) {
	from, to := netip.MustParseAddrPort("192.0.2.1:1111"), netip.MustParseAddrPort("198.51.100.2:443")
	from6, to6 := netip.MustParseAddrPort("[2001:db8::1]:1111"), netip.MustParseAddrPort("[2001:db8::2]:443")
	const signature = "0d0a0d0a000d0a515549540a"
	for want, got := range map[string][]byte{
		signature + "20000000":                              LocalHeader(),
		signature + "2111000c" + "c0000201c6336402045701bb": proxyHeader(from, to),
		signature + "21210024" + "20010db8000000000000000000000001" + "20010db8000000000000000000000002" + "045701bb": proxyHeader(from6, to6),
		signature + "21210024" + "00000000000000000000ffffc0000201" + "20010db8000000000000000000000002" + "045701bb": proxyHeader(from, to6),
	} {
		if hex.EncodeToString(got) != want {
			t.Errorf("got  %x\nwant %s", got, want)
		}
	}
}

func TestHeaderIsReadBack(t *testing.T) {
	for _, c := range []struct{ from, to, wantFrom string }{
		{"192.0.2.1:1111", "198.51.100.2:443", ""},
		{"[2001:db8::1]:1111", "[2001:db8::2]:443", ""},
		{"192.0.2.1:1111", "[2001:db8::2]:443", ""},
	} {
		from, to := netip.MustParseAddrPort(c.from), netip.MustParseAddrPort(c.to)
		r := bytes.NewReader(append(proxyHeader(from, to), "payload"...))
		gotFrom, gotTo, err := readHeader(r)
		if err != nil || gotFrom != from || gotTo != to {
			t.Errorf("%v → %v: read %v → %v, %v", from, to, gotFrom, gotTo, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "payload" {
			t.Errorf("after the header: %q", rest)
		}
	}
	if from, _, err := readHeader(bytes.NewReader(LocalHeader())); err != nil || from.IsValid() {
		t.Errorf("LOCAL: %v, %v", from, err)
	}
}

// withExtras adds to a header, its length corrected.
func withExtras(header []byte, extras ...byte) []byte {
	b := append(bytes.Clone(header), extras...)
	binary.BigEndian.PutUint16(b[14:], uint16(len(b)-headerFixed))
	return b
}

func withSum(b []byte) []byte {
	b = withExtras(b, 3, 0, 4, 0, 0, 0, 0)
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(b[len(b)-4:], sum)
	return b
}

func TestHeadersOfOthers(t *testing.T) {
	good := proxyHeader(netip.MustParseAddrPort("192.0.2.1:1111"), netip.MustParseAddrPort("198.51.100.2:443"))
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	summed := withSum(withExtras(good, 2, 0, 3, 'a', '.', 'b'))
	broken := bytes.Clone(summed)
	broken[20] ^= 1
	for what, c := range map[string]struct {
		b    []byte
		from string // "" for a good one without an address
		want error
	}{
		"extras":              {b: withExtras(good, 1, 0, 2, 'h', '2'), from: "192.0.2.1:1111"},
		"a sum":               {b: summed, from: "192.0.2.1:1111"},
		"a wrong sum":         {b: broken, want: errHeader},
		"a short sum":         {b: withExtras(good, 3, 0, 1, 0), want: errHeader},
		"a cut extra":         {b: withExtras(good, 1, 0, 9, 0), want: errHeader},
		"unspecified":         {b: append([]byte(headerSignature), 0x21, 0, 0, 0)},
		"a Unix socket":       {b: append(append([]byte(headerSignature), 0x21, 0x31, 0, 216), make([]byte, 216)...)},
		"version 1":           {b: []byte("PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\n"), want: errHeader},
		"no header":           {b: []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), want: errHeader},
		"version 3":           {b: change(12, 0x31), want: errHeader},
		"an unknown command":  {b: change(12, 0x22), want: errHeader},
		"cut addresses":       {b: append([]byte(headerSignature), 0x21, 0x11, 0, 3, 1, 2, 3), want: errHeader},
		"a length beyond all": {b: append([]byte(headerSignature), 0x21, 0x11, 0xff, 0xff), want: errHeader},
		"cut short":           {b: good[:20], want: io.ErrUnexpectedEOF},
		"nothing":             {want: io.EOF},
	} {
		from, _, err := readHeader(bytes.NewReader(c.b))
		got := ""
		if from.IsValid() {
			got = from.String()
		}
		if !errors.Is(err, c.want) || (c.want == nil && got != c.from) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
		if errors.Is(err, errHeader) && !strings.Contains(err.Error(), "PROXY protocol v2") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzHeader(f *testing.F) {
	good := proxyHeader(netip.MustParseAddrPort("192.0.2.1:1111"), netip.MustParseAddrPort("198.51.100.2:443"))
	f.Add(good)
	f.Add(LocalHeader())
	f.Add(withSum(withExtras(good, 2, 0, 3, 'a', '.', 'b')))
	f.Add(proxyHeader(netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("[2001:db8::2]:2")))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		from, to, err := readHeader(r)
		read := len(b) - r.Len()
		if read > headerFixed+maxHeader {
			t.Fatalf("read %d bytes", read)
		}
		if err != nil {
			return
		}
		if from.IsValid() != to.IsValid() {
			t.Fatalf("%v → %v", from, to)
		}
		if want := headerFixed + int(binary.BigEndian.Uint16(b[14:])); read != want {
			t.Fatalf("read %d bytes of a header of %d", read, want)
		}
		if !from.IsValid() {
			return
		}
		againFrom, againTo, err := readHeader(bytes.NewReader(proxyHeader(from, to)))
		if err != nil || againFrom != from || againTo != to {
			t.Errorf("%v → %v became %v → %v, %v", from, to, againFrom, againTo, err)
		}
	})
}
