package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// loopback is where the ports of what runs locally answer.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// localPort is where a port of the manifest answers.
type localPort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     int    `json:"port"` // of the process
	Address  string `json:"address"`
	URL      string `json:"url"`

	public int
	note   string // why it is not where one would look for it
}

// choosePorts finds a place on loopback for each port. What is free now may be taken when the proxy listens there; the
// start then says so.
func choosePorts(m *manifest.Manifest, publish map[string]int) ([]localPort, error) {
	taken := map[string]bool{} // "tcp 80"
	claim := func(protocol string, port int) error {
		key := protocol + " " + strconv.Itoa(port)
		if taken[key] {
			return syscall.EADDRINUSE
		}
		err := tryPort(protocol, port)
		taken[key] = err == nil
		return err
	}
	// Those that were chosen come first, so that none of the others gets their place.
	for _, name := range sortedKeys(publish) {
		if err := claim(m.Ports[name].Protocol, publish[name]); err != nil {
			return nil, fail(exitConflict, "choose another with --publish, or leave the choice to Pinnace", "--publish %s=%d: %s", name, publish[name], whyNoPort(publish[name], err))
		}
	}
	var ports []localPort
	for _, name := range sortedKeys(m.Ports) {
		p := m.Ports[name]
		out := localPort{Name: name, Protocol: p.Protocol, Port: p.Port, public: publish[name]}
		if out.public == 0 && p.Expose == manifest.ExposeNone {
			continue
		}
		for _, wanted := range []int{p.PublicPort, p.Port} {
			if out.public != 0 || wanted == 0 {
				continue
			}
			if err := claim(p.Protocol, wanted); err != nil {
				if out.note == "" {
					out.note = whyNoPort(wanted, err)
				}
				continue
			}
			out.public = wanted
		}
		for try := 0; out.public == 0; try++ {
			free, err := anyPort(p.Protocol)
			if err == nil {
				err = claim(p.Protocol, free)
			}
			if err == nil {
				out.public = free
			} else if try > 10 {
				return nil, fail(exitConflict, "", "find a free port on %s for %s: %w", loopback, name, err)
			}
		}
		out.Address = netip.AddrPortFrom(loopback, uint16(out.public)).String()
		out.URL = scheme(m, name) + "://" + out.Address
		ports = append(ports, out)
	}
	return ports, nil
}

// whyNoPort says why a port cannot be had.
func whyNoPort(port int, err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Sprintf("port %d is taken on this machine", port)
	case errors.Is(err, syscall.EACCES) && port < 1024:
		return fmt.Sprintf("port %d is below 1024, and this process may not listen there", port)
	}
	return fmt.Sprintf("port %d cannot be listened on: %v", port, err)
}

// tryPort says whether a port can be listened on now.
func tryPort(protocol string, port int) error {
	_, err := bindPort(protocol, port)
	return err
}

// anyPort is a port that is free now.
func anyPort(protocol string) (int, error) { return bindPort(protocol, 0) }

func bindPort(protocol string, port int) (int, error) {
	at := netip.AddrPortFrom(loopback, uint16(port))
	if protocol == manifest.ProtocolUDP {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return 0, err
		}
		defer func() { _ = c.Close() }() // it was only there to see
		return c.LocalAddr().(*net.UDPAddr).Port, nil
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }() // as above
	return l.Addr().(*net.TCPAddr).Port, nil
}

// scheme is how the URL of a port begins: http where the manifest says that it speaks that, or is called so.
func scheme(m *manifest.Manifest, name string) string {
	p := m.Ports[name]
	if p.Edge == manifest.EdgeSNI || name == "https" {
		return "https"
	}
	for _, probe := range []*manifest.Probe{m.Health.Ready, m.Health.Live} {
		if probe != nil && probe.Type == manifest.ProbeHTTP && probe.Port == name {
			return "http"
		}
	}
	if p.Protocol == manifest.ProtocolTCP && (name == "http" || name == "web") {
		return "http"
	}
	return p.Protocol
}

// routesTo are the routes of an environment in which the ports answer there.
func routesTo(ports []localPort) []*pinnacev1.AssignedRoute {
	var routes []*pinnacev1.AssignedRoute
	for _, p := range ports {
		routes = append(routes, &pinnacev1.AssignedRoute{Port: p.Name, Address: loopback.String(), PublicPort: uint32(p.public)})
	}
	return routes
}
