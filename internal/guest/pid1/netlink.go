//go:build linux

package pid1

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// netlink is a route netlink socket: just enough of it to set up one interface, without a library.
type netlink struct {
	fd  int
	seq uint32
}

func openNetlink() (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	tv := unix.NsecToTimeval(int64(5 * time.Second))
	if err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	); err != nil {
		closeFD(fd)
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &netlink{fd: fd}, nil
}

func (n *netlink) close() { closeFD(n.fd) }

// linkUp switches an interface on, with an MTU unless it is 0.
func (n *netlink) linkUp(index, mtu int) error {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	binary.NativeEndian.PutUint32(body[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(body[12:], unix.IFF_UP) // the flags to change
	if mtu > 0 {
		body = appendAttr(body, unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, uint32(mtu)))
	}
	return n.request(unix.RTM_NEWLINK, 0, body)
}

// addAddress gives an interface an address. IPv6 does without duplicate address detection, which would keep the
// address from being used for a second; the host gives every address once.
func (n *netlink) addAddress(index int, p netip.Prefix) error {
	addr := p.Addr()
	body := make([]byte, unix.SizeofIfAddrmsg)
	body[0], body[1] = family(addr), byte(p.Bits())
	if addr.Is6() {
		body[2] = unix.IFA_F_NODAD
	}
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	body = appendAttr(body, unix.IFA_LOCAL, addr.AsSlice())
	body = appendAttr(body, unix.IFA_ADDRESS, addr.AsSlice())
	if addr.Is4() && p.Bits() < 31 {
		body = appendAttr(body, unix.IFA_BROADCAST, lastAddress(p).AsSlice())
	}
	return n.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

// addDefaultRoute sends everything else to gateway; onLink when no address of the interface has gateway in its prefix.
func (n *netlink) addDefaultRoute(index int, gateway netip.Addr, onLink bool) error {
	body := make([]byte, unix.SizeofRtMsg)
	body[0] = family(gateway)
	body[4] = unix.RT_TABLE_MAIN
	body[5] = unix.RTPROT_STATIC
	body[6] = unix.RT_SCOPE_UNIVERSE
	body[7] = unix.RTN_UNICAST
	if onLink {
		binary.NativeEndian.PutUint32(body[8:], unix.RTNH_F_ONLINK)
	}
	body = appendAttr(body, unix.RTA_GATEWAY, gateway.AsSlice())
	body = appendAttr(body, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	return n.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func lastAddress(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a)
}

// request sends one message and returns the kernel's answer to it.
func (n *netlink) request(kind, flags uint16, body []byte) error {
	n.seq++
	if err := unix.Sendto(n.fd, netlinkMessage(kind, flags, n.seq, body), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 8<<10)
	for {
		got, _, err := unix.Recvfrom(n.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if done, err := ackIn(buf[:got], n.seq); done {
			return err
		}
	}
}

func netlinkMessage(kind, flags uint16, seq uint32, body []byte) []byte {
	msg := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(msg, uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(msg[4:], kind)
	binary.NativeEndian.PutUint16(msg[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.NativeEndian.PutUint32(msg[8:], seq)
	return append(msg, body...)
}

// ackIn looks for the acknowledgement of request seq.
func ackIn(answer []byte, seq uint32) (bool, error) {
	const errorAt = unix.SizeofNlMsghdr
	if len(answer) < errorAt+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR ||
		binary.NativeEndian.Uint32(answer[8:]) != seq {
		return false, nil
	}
	if code := int32(binary.NativeEndian.Uint32(answer[errorAt:])); code != 0 {
		return true, unix.Errno(-code)
	}
	return true, nil
}

// appendAttr appends a route attribute, padded to four bytes.
func appendAttr(dst []byte, kind uint16, value []byte) []byte {
	dst = binary.NativeEndian.AppendUint16(dst, uint16(unix.SizeofRtAttr+len(value)))
	dst = binary.NativeEndian.AppendUint16(dst, kind)
	dst = append(dst, value...)
	for len(dst)%4 != 0 {
		dst = append(dst, 0)
	}
	return dst
}
