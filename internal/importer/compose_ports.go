package importer

import (
	"net/netip"
	"strconv"
	"strings"
)

// maxRange bounds what a range of ports may become: a manifest has at most 32.
const maxRange = 32

// composePorts carries over published and exposed ports.
func (c *conversion) composePorts(s *node) {
	for _, n := range s.get("ports").members() {
		if n.kind == kindTable {
			c.composeLongPort(n)
			continue
		}
		if spec, ok := n.scalar(); ok {
			c.composePort(n, spec)
		}
	}
	for _, n := range s.get("expose").members() {
		spec, ok := n.scalar()
		if !ok {
			continue
		}
		number, protocol, _ := strings.Cut(spec, "/")
		first, last, ok := portRange(number)
		if !ok {
			n.drop("%s is not a port", show(spec))
			continue
		}
		for p := first; p <= last; p++ {
			c.port(n, "", p, protocol)
		}
	}
}

// composePort reads HOST:PUBLISHED:TARGET/PROTOCOL, of which only TARGET must be there.
func (c *conversion) composePort(n *node, spec string) {
	rest, protocol, _ := strings.Cut(spec, "/")
	target, published, host := rest, "", ""
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		published, target = rest[:i], rest[i+1:]
		if i := strings.LastIndexByte(published, ':'); i >= 0 {
			host, published = strings.Trim(published[:i], "[]"), published[i+1:]
		}
	}
	first, last, ok := portRange(target)
	if !ok {
		n.drop("%s is not a port, or a range of more than %d", show(spec), maxRange)
		return
	}
	outside, outsideLast := int64(0), int64(0)
	if published != "" {
		if outside, outsideLast, ok = portRange(published); !ok || outsideLast-outside != last-first {
			n.drop("%s does not lead one port to one port", show(spec))
			return
		}
	}
	for i := range last - first + 1 {
		public := int64(0)
		if outside != 0 {
			public = outside + i
		}
		c.publish(n, "", first+i, protocol, host, public)
	}
}

func (c *conversion) composeLongPort(n *node) {
	inside, ok := n.get("target").integer()
	if !ok {
		n.drop("it does not say which port of the service it is about")
		return
	}
	protocol, _ := n.get("protocol").scalar()
	host, _ := n.get("host_ip").scalar()
	name, _ := n.get("name").scalar()
	var outside int64
	if p := n.get("published"); p != nil {
		if outside, ok = p.integer(); !ok {
			p.drop("one number outside leads to a port")
		}
	}
	n.get("app_protocol").drop("Pinnace carries connections and does not read what is in them")
	n.get("mode").drop("every host leads to the instances")
	for _, key := range []string{"published", "protocol", "host_ip", "name"} {
		if k := n.get(key); k != nil && !k.done {
			k.take()
		}
	}
	n.used = true
	c.publish(n.get("target"), name, inside, protocol, host, outside)
}

// publish declares a port, and opens it to the world when the file does so under a number.
func (c *conversion) publish(n *node, name string, inside int64, protocol, host string, outside int64) {
	name = c.port(n, name, inside, strings.ToLower(protocol))
	if addr, err := netip.ParseAddr(host); err == nil && addr.IsLoopback() {
		n.alter("it is open to the machine that runs compose only; here it is internal, for the environment")
		return
	}
	if host != "" && host != "0.0.0.0" && host != "::" {
		n.alter("it is public on every address, not on %s alone", show(host))
	}
	if outside == 0 {
		n.alter("compose chooses a number outside; here it is internal, for the environment")
		return
	}
	c.public(n, name, outside)
}

// portRange reads "80" and "3000-3005".
func portRange(s string) (first, last int64, ok bool) {
	low, high, isRange := strings.Cut(strings.TrimSpace(s), "-")
	first, err := strconv.ParseInt(low, 10, 32)
	if err != nil || first < 1 || first > 65535 {
		return 0, 0, false
	}
	if !isRange {
		return first, first, true
	}
	last, err = strconv.ParseInt(high, 10, 32)
	return first, last, err == nil && last >= first && last-first < maxRange && last <= 65535
}
