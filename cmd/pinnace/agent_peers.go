package main

import (
	"net/netip"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/agent"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// peerFlags say how an agent's host takes part in leading connections from host to host.
type peerFlags struct {
	listen, address string
}

func (p *peerFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&p.listen, "peer-listen", "", "where the proxies of other hosts come in, as 0.0.0.0:7402; without, nothing is led from host to host")
	flags.StringVar(&p.address, "peer-address", "", "where they reach that (default: --peer-listen)")
}

// peering is what the agent is given of it, and the address that other hosts get to know; nil for none. The host shows others
// what it shows the server, which is in the directory own.
func (p *peerFlags) peering(own string) (*agent.Peering, string, error) {
	if p.listen == "" {
		if p.address != "" {
			return nil, "", fail(exitInvalid, "", "--peer-address is of no use without --peer-listen")
		}
		return nil, "", nil
	}
	listen, err := netip.ParseAddrPort(p.listen)
	if err != nil || listen.Port() == 0 || listen.Addr().Zone() != "" {
		return nil, "", fail(exitInvalid, "it looks like 192.0.2.7:7402", "--peer-listen %q is not an address with a port", p.listen)
	}
	at := listen
	if p.address != "" {
		if at, err = netip.ParseAddrPort(p.address); err != nil || at.Port() == 0 {
			return nil, "", fail(exitInvalid, "it looks like 192.0.2.7:7402", "--peer-address %q is not an address with a port", p.address)
		}
	}
	if at.Addr().IsUnspecified() {
		return nil, "", fail(exitInvalid, "--peer-address says which of this host's addresses", "other hosts cannot connect to %s", at)
	}
	return &agent.Peering{Listen: listen, Files: proxy.Peering{
		Certificate: filepath.Join(own, "host.crt"), Key: filepath.Join(own, "host.key"), Authorities: filepath.Join(own, "ca.crt"),
	}}, at.String(), nil
}
