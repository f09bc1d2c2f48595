package proxy

import (
	"encoding/binary"
	"errors"
	"strings"
)

// Bounds of what is read of a client before it is known where it wants to go. Browsers send up to about 2 KiB.
const (
	maxHello    = 16 << 10 // of the message itself
	maxHelloRaw = 32 << 10 // with the records around it
	maxRecord   = 16 << 10
)

// The reasons for which a TLS client is turned away.
var (
	errPlainHTTP = errors.New("speaks HTTP without TLS")
	errNotTLS    = errors.New("does not speak TLS")
	errMalformed = errors.New("sent a malformed ClientHello")
	errTooLong   = errors.New("sent a ClientHello that is too long")
)

// Numbers of TLS.
const (
	recordHandshake      = 22
	handshakeClientHello = 1
	extensionServerName  = 0
	extensionECH         = 0xfe0d
)

// A helloReader finds the server name in what a TLS client says first, however that is cut into records and
// segments. Feeding it costs time in proportion to the bytes fed.
type helloReader struct {
	raw []byte // all that was fed, to be passed on as it is
	at  int    // so much of raw has been looked at
	// left is how much of the current record has not been seen yet.
	left    int
	message []byte // the handshake message, without the records around it
	name    string
	ech     bool
}

// feed takes what the client has sent next. It says whether the hello is complete; an error is final.
func (h *helloReader) feed(b []byte) (done bool, err error) {
	h.raw = append(h.raw, b...)
	for {
		if h.left == 0 {
			ok, err := h.header()
			if err != nil {
				return false, err
			}
			if !ok {
				break
			}
		}
		n := min(h.left, len(h.raw)-h.at)
		h.message = append(h.message, h.raw[h.at:h.at+n]...)
		h.at += n
		h.left -= n
		if done, err := h.complete(); done || err != nil {
			return done, err
		}
		if h.left > 0 {
			break
		}
	}
	if len(h.raw) > maxHelloRaw {
		return false, errTooLong
	}
	return false, nil
}

// header reads the header of a record, when it is there.
func (h *helloReader) header() (bool, error) {
	b := h.raw[h.at:]
	if len(b) == 0 {
		return false, nil
	}
	if b[0] != recordHandshake {
		if h.at > 0 {
			return false, errMalformed
		}
		return false, notTLS(b)
	}
	if len(b) < 5 {
		return false, nil
	}
	n := int(binary.BigEndian.Uint16(b[3:]))
	switch {
	case b[1] != 3 && h.at == 0:
		return false, errNotTLS
	case b[1] != 3, n == 0, n > maxRecord:
		// Empty fragments of handshake messages are forbidden, or reading them would never end.
		return false, errMalformed
	}
	h.at += 5
	h.left = n
	return true, nil
}

// notTLS says what it is that begins so, or nil when a few bytes more will tell.
func notTLS(b []byte) error {
	undecided := false
	for _, method := range []string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "CONNECT ", "OPTIONS ", "TRACE ", "PATCH ", "PRI "} {
		if strings.HasPrefix(string(b[:min(len(b), len(method))]), method) {
			return errPlainHTTP
		}
		undecided = undecided || strings.HasPrefix(method, string(b[:min(len(b), len(method))]))
	}
	if undecided {
		return nil
	}
	return errNotTLS
}

// complete looks at the message as soon as it is whole.
func (h *helloReader) complete() (bool, error) {
	if len(h.message) > 0 && h.message[0] != handshakeClientHello {
		return false, errMalformed
	}
	if len(h.message) < 4 {
		return false, nil
	}
	n := int(h.message[1])<<16 | int(h.message[2])<<8 | int(h.message[3])
	if n > maxHello {
		return false, errTooLong
	}
	if len(h.message) < 4+n {
		return false, nil
	}
	if !h.parse(h.message[4 : 4+n]) {
		return false, errMalformed
	}
	return true, nil
}

// parse reads the body of a ClientHello (RFC 8446, section 4.1.2).
func (h *helloReader) parse(b []byte) bool {
	r := reader(b)
	if _, ok := r.take(2 + 32); !ok { // version and random
		return false
	}
	session, ok := r.block(1)
	if !ok || len(session) > 32 {
		return false
	}
	suites, ok := r.block(2)
	if !ok || len(suites) < 2 || len(suites)%2 != 0 {
		return false
	}
	if compression, ok := r.block(1); !ok || len(compression) == 0 {
		return false
	}
	if len(r) == 0 {
		return true // from before there were extensions
	}
	extensions, ok := r.block(2)
	if !ok || len(r) > 0 {
		return false
	}
	named := false
	for len(extensions) > 0 {
		kind, ok := extensions.number(2)
		if !ok {
			return false
		}
		body, ok := extensions.block(2)
		if !ok {
			return false
		}
		switch kind {
		case extensionServerName:
			// Two would be an invitation for two readers to choose different ones.
			if named || !h.serverName(body) {
				return false
			}
			named = true
		case extensionECH:
			h.ech = true
		}
	}
	return true
}

// serverName reads the extension (RFC 6066, section 3): one name of the only type that there is.
func (h *helloReader) serverName(b reader) bool {
	list, ok := b.block(2)
	if !ok || len(b) > 0 {
		return false
	}
	kind, ok := list.number(1)
	if !ok || kind != 0 {
		return false
	}
	name, ok := list.block(2)
	if !ok || len(list) > 0 {
		return false
	}
	// The final dot does not belong there, and some send it.
	text := strings.TrimSuffix(string(name), ".")
	if !isHostName(text) {
		return false
	}
	h.name = strings.ToLower(text)
	return true
}

// A reader takes values from the front of a message.
type reader []byte

func (r *reader) take(n int) (reader, bool) {
	if len(*r) < n {
		return nil, false
	}
	b := (*r)[:n]
	*r = (*r)[n:]
	return b, true
}

// number is one of size bytes, big endian.
func (r *reader) number(size int) (int, bool) {
	b, ok := r.take(size)
	n := 0
	for _, c := range b {
		n = n<<8 | int(c)
	}
	return n, ok
}

// block is what follows its own length, which has size bytes.
func (r *reader) block(size int) (reader, bool) {
	n, ok := r.number(size)
	if !ok {
		return nil, false
	}
	return r.take(n)
}
