package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A newer proxy takes over from an older one over its control socket:
//
//	new → old  "handover"
//	old → new  the configuration, then the sockets: in parcels of a message and a byte that carries descriptors
//	new → old  "taken", when it has all of them
//	old → new  its status, when it takes nothing new any more
//
// The sockets are never closed, so what comes in the middle waits in the kernel: connections, datagrams of
// clients whose sessions go over with them, and requests to the control socket itself. If the new one fails
// before "taken", the old one goes on as if nothing had been.
//
// The connections that the old one has stay with it. The new one passes configurations on to it, so that they
// end when their backend leaves, and adds its status to its own, until it has none left and ends.
const (
	opHandover = "handover"
	opTaken    = "taken"
	// parcel is how many descriptors go with one message; the kernel takes 253.
	parcel = 200
	// handoverTimeout bounds how long the old proxy waits for the new one, which gives up before.
	handoverTimeout = 10 * time.Second
	inheritTimeout  = 8 * time.Second
)

// The kinds of what is handed over.
const (
	passedLock    = "lock"
	passedControl = "control"
	passedSocket  = "socket"
	passedSession = "session"
	passedDNSUDP  = "dns-udp"
	passedDNSTCP  = "dns-tcp"
)

// A passed describes one descriptor.
type passed struct {
	Kind string `json:"kind"`
	// Of sockets, and of the socket that a session belongs to:
	Netns     string         `json:"netns,omitempty"`
	Address   netip.AddrPort `json:"address,omitzero"`
	Transport string         `json:"transport,omitempty"`
	// Inode is that of the namespace: its path may lead elsewhere by now.
	Inode uint64 `json:"inode,omitempty"`
	// Of sessions:
	Client  netip.AddrPort `json:"client,omitzero"`
	To      netip.Addr     `json:"to,omitzero"`
	Backend *Backend       `json:"backend,omitempty"`
	Steady  bool           `json:"steady,omitempty"`
	// Tunnelled is set when the descriptor is one end of a pair of which the old proxy leads the other to another host.
	Tunnelled bool `json:"tunnelled,omitempty"`
}

// An offering is what an older proxy gives.
type offering struct {
	items []passed
	fds   []int
}

func (o *offering) add(p passed, s socket) error {
	fd, err := s.dup()
	if err != nil {
		return err
	}
	o.items = append(o.items, p)
	o.fds = append(o.fds, fd)
	return nil
}

// close lets go of the copies.
func (o *offering) close() {
	for _, fd := range o.fds {
		_ = unix.Close(fd)
	}
	o.fds = nil
}

// A handoverMessage is one of those that the old proxy sends.
type handoverMessage struct {
	Version int             `json:"version,omitempty"`
	Config  json.RawMessage `json:"config,omitempty"`
	Items   []passed        `json:"items,omitempty"`
	End     bool            `json:"end,omitempty"`
	Error   string          `json:"error,omitempty"`
}

func (o *offering) send(c *net.UnixConn, config Config) error {
	b, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := writeMessage(c, handoverMessage{Version: protocolVersion, Config: b}); err != nil {
		return err
	}
	for from := 0; from < len(o.items); from += parcel {
		to := min(from+parcel, len(o.items))
		if err := writeMessage(c, handoverMessage{Items: o.items[from:to]}); err != nil {
			return err
		}
		if _, _, err := c.WriteMsgUnix([]byte{'f'}, unix.UnixRights(o.fds[from:to]...), nil); err != nil {
			return fmt.Errorf("send descriptors: %w", err)
		}
	}
	return writeMessage(c, handoverMessage{End: true})
}

// An inherited is what a newer proxy has got and not made use of yet.
type inherited struct {
	config  Config
	lock    *os.File
	control *net.UnixListener
	sockets map[socketKey]inheritedSocket
	// dnsTCP and dnsUDP are the two of a DNS server.
	dnsTCP, dnsUDP map[socketKey]inheritedSocket
	sessions       map[socketKey][]inheritedSession
	// link is to the old proxy.
	link *Client
}

type inheritedSocket struct {
	fd    int
	inode uint64
}

type inheritedSession struct {
	passed
	fd int
}

// inherit asks the proxy on socket for all that it has.
func inherit(socket string) (in *inherited, err error) {
	raw, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	in = &inherited{
		sockets: map[socketKey]inheritedSocket{}, sessions: map[socketKey][]inheritedSession{},
		dnsTCP: map[socketKey]inheritedSocket{}, dnsUDP: map[socketKey]inheritedSocket{}, link: &Client{conn: raw},
	}
	defer func() {
		if err != nil {
			in.close()
			_ = raw.Close()
			in = nil
		}
	}()
	if err := raw.SetDeadline(time.Now().Add(inheritTimeout)); err != nil {
		return in, err
	}
	if err := writeMessage(raw, request{Op: opHandover}); err != nil {
		return in, err
	}
	for first := true; ; first = false {
		var m handoverMessage
		if err := readMessage(raw, &m, func() error { return nil }); err != nil {
			return in, fmt.Errorf("read what the old proxy hands over: %w", err)
		}
		switch {
		case m.Error != "":
			return in, fmt.Errorf("the old proxy does not hand over: %s", m.Error)
		case first:
			c, err := ParseConfig(m.Config)
			if err != nil {
				return in, err
			}
			in.config = *c
		case m.End:
			if in.lock == nil || in.control == nil {
				return in, errors.New("the old proxy has not handed over its own socket")
			}
			return in, in.taken(raw)
		default:
			if err := in.unpack(raw, m.Items); err != nil {
				return in, err
			}
		}
	}
}

// taken says that everything is here. When that could be said and the answer does not come, the old proxy has
// died, and there is all the more reason to go on.
func (in *inherited) taken(c *net.UnixConn) error {
	if err := writeMessage(c, request{Op: opTaken}); err != nil {
		return fmt.Errorf("tell the old proxy: %w", err)
	}
	var a response
	if err := readMessage(c, &a, func() error { return nil }); err != nil {
		return nil //nolint:nilerror // see above
	}
	return c.SetDeadline(time.Time{})
}

// unpack receives the descriptors of one parcel.
func (in *inherited) unpack(c *net.UnixConn, items []passed) error {
	if len(items) == 0 || len(items) > parcel {
		return fmt.Errorf("a parcel of %d descriptors", len(items))
	}
	control := make([]byte, unix.CmsgSpace(4*parcel))
	_, n, _, _, err := c.ReadMsgUnix(make([]byte, 1), control)
	if err != nil {
		return fmt.Errorf("receive descriptors: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return fmt.Errorf("receive descriptors: %w", err)
	}
	var fds []int
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fmt.Errorf("receive descriptors: %w", err)
		}
		fds = append(fds, got...)
	}
	if len(fds) != len(items) {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return fmt.Errorf("received %d descriptors, not %d; is the limit of open files too low?", len(fds), len(items))
	}
	var errs []error
	for i, p := range items {
		errs = append(errs, in.keep(p, fds[i]))
	}
	return errors.Join(errs...)
}

func (in *inherited) keep(p passed, fd int) error {
	key := socketKey{p.Netns, p.Address, p.Transport}
	switch p.Kind {
	case passedLock:
		in.lock = os.NewFile(uintptr(fd), "lock")
	case passedControl:
		f := os.NewFile(uintptr(fd), "control")
		defer func() { _ = f.Close() }() // FileListener takes a copy
		l, err := net.FileListener(f)
		if err != nil {
			return err
		}
		unixListener, ok := l.(*net.UnixListener)
		if !ok {
			return errors.Join(errors.New("the control socket is none"), l.Close())
		}
		in.control = unixListener
	case passedSocket:
		in.sockets[key] = inheritedSocket{fd, p.Inode}
	case passedDNSUDP:
		in.dnsUDP[key] = inheritedSocket{fd, p.Inode}
	case passedDNSTCP:
		in.dnsTCP[key] = inheritedSocket{fd, p.Inode}
	case passedSession:
		in.sessions[key] = append(in.sessions[key], inheritedSession{p, fd})
	default:
		// A proxy of the future; what it is for does without.
		return unix.Close(fd)
	}
	return nil
}

// take gives the socket that was bound in ns, once.
func take(from map[socketKey]inheritedSocket, key socketKey, ns *namespace) (fd int, ok bool) {
	s, ok := from[key]
	if !ok {
		return -1, false
	}
	delete(from, key)
	if s.inode != ns.id() {
		_ = unix.Close(s.fd)
		return -1, false
	}
	return s.fd, true
}

// close lets go of what was not made use of.
func (in *inherited) close() {
	for _, sockets := range []map[socketKey]inheritedSocket{in.sockets, in.dnsTCP, in.dnsUDP} {
		for key, s := range sockets {
			_ = unix.Close(s.fd)
			delete(sockets, key)
		}
	}
	for key, sessions := range in.sessions {
		for _, s := range sessions {
			_ = unix.Close(s.fd)
		}
		delete(in.sessions, key)
	}
}
