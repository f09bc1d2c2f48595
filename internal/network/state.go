package network

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// lastIndex is that of the last guest address in Subnet4, whose very last is for broadcast.
const lastIndex = 1<<16 - 2

// firstIndex comes after the gateway's.
const firstIndex = 2

// envState is what RunDir/environments/<name>.json says. It is written before what it describes is made, so
// that nothing exists in the kernel that it does not name.
type envState struct {
	// Uplink is the pair of addresses of the uplink; the first is outside. Invalid while there is none.
	Uplink netip.Prefix `json:"uplink"`
	// Next is where the search for a free guest index goes on. It only moves forward, so an address rests
	// until all others were used.
	Next   int                    `json:"next"`
	Guests map[string]*guestState `json:"guests"`
}

// guestState is one attachment: everything else follows from its index.
type guestState struct {
	Index int    `json:"index"`
	UID   uint32 `json:"uid"`
	// Egress is empty for EgressAll.
	Egress Egress `json:"egress,omitempty"`
}

// goesOut tells whether anything outside is in the guest's reach. What a later version may have written there is
// not known to allow it.
func (g *guestState) goesOut() bool { return g.Egress == "" || g.Egress == EgressAll }

// allocate gives instance an index that no other has.
func (s *envState) allocate(instance string, uid uint32) (*guestState, error) {
	used := make(map[int]bool, len(s.Guests))
	for _, g := range s.Guests {
		used[g.Index] = true
	}
	for range lastIndex {
		if s.Next < firstIndex || s.Next > lastIndex {
			s.Next = firstIndex
		}
		index := s.Next
		s.Next++
		if !used[index] {
			g := &guestState{Index: index, UID: uid}
			s.Guests[instance] = g
			return g, nil
		}
	}
	return nil, fmt.Errorf("%w: the environment has %d guests", ErrFull, len(s.Guests))
}

func (g *guestState) tap() string { return fmt.Sprintf("t%d", g.Index) }

// mac is locally administered and unicast, and says what it belongs to: "pn" and the index.
func (g *guestState) mac() net.HardwareAddr {
	return net.HardwareAddr{0x02, 'p', 'n', 0, byte(g.Index >> 8), byte(g.Index)}
}

func (g *guestState) ipv4() netip.Addr {
	a := Subnet4.Addr().As4()
	a[2], a[3] = byte(g.Index>>8), byte(g.Index)
	return netip.AddrFrom4(a)
}

func (g *guestState) ipv6() netip.Addr {
	a := Subnet6.Addr().As16()
	a[14], a[15] = byte(g.Index>>8), byte(g.Index)
	return netip.AddrFrom16(a)
}

// linkLocal is the address that the guest's kernel makes of its MAC (RFC 4291, appendix A).
func (g *guestState) linkLocal() netip.Addr {
	m := g.mac()
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

func (s *envState) check() error {
	used := map[int]bool{}
	for name, g := range s.Guests {
		if g == nil || g.Index < firstIndex || g.Index > lastIndex || used[g.Index] || checkInstance(name) != nil {
			return fmt.Errorf("guest %q has a bad index or name", name)
		}
		used[g.Index] = true
	}
	return nil
}

func (m *Manager) netnsPath(env string) string { return filepath.Join(m.runDir, "netns", env) }

func (m *Manager) statePath(env string) string {
	return filepath.Join(m.runDir, "environments", env+".json")
}

func (m *Manager) writeState(env string, s *envState) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write network state of %s: %w", env, err)
	}
	if err := durable.WriteFile(m.statePath(env), b, 0o600); err != nil {
		return fmt.Errorf("write network state of %s: %w", env, err)
	}
	return nil
}

func (m *Manager) readState(env string) (*envState, error) {
	b, err := os.ReadFile(m.statePath(env))
	if err != nil {
		return nil, fmt.Errorf("read network state: %w", err)
	}
	s := &envState{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read network state of %s: %w", env, err)
	}
	if s.Guests == nil {
		s.Guests = map[string]*guestState{}
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("read network state of %s: %w", env, err)
	}
	return s, nil
}

var (
	// An environment's name becomes a file name.
	environmentName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	instanceName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	// With "-u" and the number of an uplink, a prefix must fit into the 15 bytes of a link's name.
	prefixName = regexp.MustCompile(`^[a-z][a-z0-9]{0,5}$`)
)

func checkEnvironment(env string) error {
	if !environmentName.MatchString(env) {
		return fmt.Errorf("environment name %q is not 1 to 63 of a-z, 0-9 and -", env)
	}
	return nil
}

func checkInstance(instance string) error {
	if !instanceName.MatchString(instance) {
		return fmt.Errorf("instance name %q is not 1 to 128 of letters, digits, '.', '_' and '-'", instance)
	}
	return nil
}

// attachment is what callers see of g.
func (m *Manager) attachment(env, instance string, g *guestState) *Attachment {
	a := &Attachment{
		Environment: env, Instance: instance, Netns: m.netnsPath(env), Tap: g.tap(), UID: g.UID, MAC: g.mac(),
		IPv4:     netip.PrefixFrom(g.ipv4(), Subnet4.Bits()),
		IPv6:     netip.PrefixFrom(g.ipv6(), Subnet6.Bits()),
		Gateway4: Gateway4, MTU: m.mtu,
	}
	if m.ipv6 {
		a.Gateway6 = Gateway6
	}
	return a
}

func sortedAttachments(m *Manager, env string, s *envState) []Attachment {
	out := make([]Attachment, 0, len(s.Guests))
	for name, g := range s.Guests {
		out = append(out, *m.attachment(env, name, g))
	}
	slices.SortFunc(out, func(a, b Attachment) int { return cmp.Compare(a.Instance, b.Instance) })
	return out
}

// removeState forgets env.
func (m *Manager) removeState(env string) error {
	if err := os.Remove(m.statePath(env)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network state: %w", err)
	}
	return nil
}
