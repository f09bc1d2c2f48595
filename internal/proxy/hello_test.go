package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// clientHello is what Go's client says first; big adds protocols until it has several kilobytes.
func clientHello(t testing.TB, name string, big bool) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer func() { _ = server.Close() }()
	config := &tls.Config{ServerName: name, InsecureSkipVerify: true}
	if big {
		for range 40 {
			config.NextProtos = append(config.NextProtos, strings.Repeat("x", 200))
		}
	}
	go func() {
		_ = tls.Client(client, config).Handshake()
		_ = client.Close()
	}()
	head := make([]byte, 5)
	_, err := io.ReadFull(server, head)
	check(t, err)
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	_, err = io.ReadFull(server, body)
	check(t, err)
	return append(head, body...)
}

// inRecords cuts the message of a single record into records of n bytes.
func inRecords(hello []byte, n int) []byte {
	var out []byte
	for piece := range slices.Chunk(hello[5:], n) {
		out = append(out, recordHandshake, 3, 1)
		out = binary.BigEndian.AppendUint16(out, uint16(len(piece)))
		out = append(out, piece...)
	}
	return out
}

// read feeds b in pieces of n bytes.
func read(b []byte, n int) (*helloReader, bool, error) {
	var h helloReader
	for piece := range slices.Chunk(b, n) {
		if done, err := h.feed(piece); done || err != nil {
			return &h, done, err
		}
	}
	return &h, false, nil
}

func TestServerNameIsFound(t *testing.T) {
	for _, big := range []bool{false, true} {
		hello := clientHello(t, "App.Example.COM", big)
		for _, record := range []int{1 << 14, 1000, 100, 7} {
			b := inRecords(hello, record)
			for _, segment := range []int{len(b), 1460, 100, 1} {
				h, done, err := read(b, segment)
				want := "app.example.com"
				if len(b) > maxHelloRaw {
					if !errors.Is(err, errTooLong) {
						t.Errorf("%d bytes: %v", len(b), err)
					}
					continue
				}
				if !done || err != nil || h.name != want {
					t.Errorf("big %v, records of %d, segments of %d: %q, %v, %v", big, record, segment, h.name, done, err)
				}
				if !bytes.Equal(h.raw, b[:len(h.raw)]) {
					t.Error("what is passed on is not what was said")
				}
			}
			// Early data behind it is passed on too.
			if h, done, _ := read(append(slices.Clone(b), "early"...), len(b)+5); done && !bytes.HasSuffix(h.raw, []byte("early")) {
				t.Error("early data is lost")
			}
		}
	}
	if h, done, err := read(clientHello(t, "", false), 1000); !done || err != nil || h.name != "" {
		t.Errorf("without a name: %q, %v, %v", h.name, done, err)
	}
}

// build makes a ClientHello with those extensions.
func build(extensions ...[]byte) []byte {
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0)
	all := slices.Concat(extensions...)
	if extensions != nil {
		body = binary.BigEndian.AppendUint16(body, uint16(len(all)))
		body = append(body, all...)
	}
	message := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	return append([]byte{22, 3, 1, byte(len(message) >> 8), byte(len(message))}, message...)
}

func extension(kind uint16, body []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

func serverName(names ...string) []byte {
	var list []byte
	for _, name := range names {
		list = append(list, 0)
		list = binary.BigEndian.AppendUint16(list, uint16(len(name)))
		list = append(list, name...)
	}
	return extension(0, append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...))
}

func TestHelloVerdicts(t *testing.T) {
	good := build(serverName("a.example"))
	for what, c := range map[string]struct {
		b    []byte
		want error
		name string
	}{
		"good":                      {b: good, name: "a.example"},
		"with a dot at the end":     {b: build(serverName("a.example.")), name: "a.example"},
		"without extensions":        {b: build()},
		"grease and ECH":            {b: build(extension(0x0a0a, nil), extension(extensionECH, []byte{0, 1, 2}), serverName("outer.example")), name: "outer.example"},
		"two name extensions":       {b: build(serverName("a.example"), serverName("b.example")), want: errMalformed},
		"two names":                 {b: build(serverName("a.example", "b.example")), want: errMalformed},
		"no name in the list":       {b: build(serverName()), want: errMalformed},
		"an empty name":             {b: build(serverName("")), want: errMalformed},
		"a NUL in the name":         {b: build(serverName("a.example\x00.b")), want: errMalformed},
		"a name with a slash":       {b: build(serverName("../a")), want: errMalformed},
		"an address":                {b: build(serverName("10.0.0.1")), want: errMalformed},
		"a long name":               {b: build(serverName(strings.Repeat("a.", 127) + "a")), want: errMalformed},
		"a cut extension":           {b: build([]byte{0, 0, 0, 9, 1}), want: errMalformed},
		"another handshake first":   {b: []byte{22, 3, 1, 0, 4, 2, 0, 0, 0}, want: errMalformed},
		"an empty record":           {b: []byte{22, 3, 1, 0, 0}, want: errMalformed},
		"a huge record":             {b: []byte{22, 3, 1, 0xff, 0xff}, want: errMalformed},
		"an alert in the middle":    {b: append(inRecords(good, 20)[:25], 21, 3, 3, 0, 2, 2, 0), want: errMalformed},
		"a huge hello":              {b: []byte{22, 3, 1, 0, 4, 1, 1, 0, 0}, want: errTooLong},
		"HTTP":                      {b: []byte("GET / HTTP/1.1\r\n"), want: errPlainHTTP},
		"HTTP, one letter":          {b: []byte("P"), want: io.EOF},
		"almost HTTP":               {b: []byte("GEThsemane"), want: errNotTLS},
		"HTTP/2":                    {b: []byte("PRI * HTTP/2.0\r\n"), want: errPlainHTTP},
		"SSH":                       {b: []byte("SSH-2.0-x"), want: errNotTLS},
		"SSL 2":                     {b: []byte{0x80, 0x2e, 1, 3, 1}, want: errNotTLS},
		"not yet all of it":         {b: good[:len(good)-1], want: io.EOF},
		"nothing but its beginning": {b: good[:3], want: io.EOF},
	} {
		for _, segment := range []int{len(c.b), 1} {
			h, done, err := read(c.b, segment)
			if err == nil && !done {
				err = io.EOF // it waits for more
			}
			if !errors.Is(err, c.want) || (c.want == nil && (err != nil || h.name != c.name)) {
				t.Errorf("%s: %q, %v, want %q, %v", what, h.name, err, c.name, c.want)
			}
			if strings.Contains(what, "ECH") && !h.ech {
				t.Error("ECH was not seen")
			}
		}
	}
}

// goReads is what Go's server makes of b: whether it is a hello that it takes, and the name in it.
func goReads(b []byte) (name string, ok bool) {
	c := &scripted{in: bytes.NewReader(b)}
	stop := errors.New("stop")
	_ = tls.Server(c, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = info.ServerName, true
		return nil, stop
	}}).HandshakeContext(context.Background())
	return name, ok
}

// scripted is a connection that says what is in it, and forgets what is said to it.
type scripted struct {
	net.Conn
	in io.Reader
}

func (c *scripted) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c *scripted) Write(b []byte) (int, error)      { return len(b), nil }
func (c *scripted) Close() error                     { return nil }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// FuzzClientHello compares with Go's own parser: what both take has the same name, however it is cut. Where one
// of us is stricter there is nothing to compare.
func FuzzClientHello(f *testing.F) {
	for _, b := range [][]byte{
		clientHello(f, "app.example.com", false), clientHello(f, "", false), inRecords(clientHello(f, "a.b", false), 50),
		build(serverName("a.example")), []byte("GET / HTTP/1.1\r\n\r\n"),
		{0x80, 0x2e, 1, 3, 1},
	} {
		f.Add(b, 7)
	}
	f.Fuzz(func(t *testing.T, b []byte, segment int) {
		whole, done, err := read(b, max(len(b), 1))
		cut, doneCut, errCut := read(b, max(segment%100, 1))
		if done != doneCut || !errors.Is(errCut, err) || whole.name != cut.name {
			t.Fatalf("in pieces: %v %v %q; at once: %v %v %q", doneCut, errCut, cut.name, done, err, whole.name)
		}
		if len(whole.message) > maxHello+4+maxRecord {
			t.Fatalf("keeps %d bytes", len(whole.message))
		}
		if !done {
			return
		}
		if name, ok := goReads(b); ok && whole.name != "" && strings.TrimSuffix(strings.ToLower(name), ".") != whole.name {
			t.Errorf("we read %q, Go reads %q\n%s", whole.name, name, hex.Dump(b))
		}
	})
}
