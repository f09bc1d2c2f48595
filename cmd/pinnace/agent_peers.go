package main

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/agent"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// peerFlags say how an agent's host takes part in leading connections from host to host.
type peerFlags struct {
	listen, address               string
	certificate, key, authorities string
}

func (p *peerFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&p.listen, "peer-listen", "", "where the proxies of other hosts come in, as 0.0.0.0:7402; without, nothing is led from host to host")
	flags.StringVar(&p.address, "peer-address", "", "where they reach that (default: --peer-listen)")
	flags.Var((*dirFlag)(&p.certificate), "peer-cert", "certificate of this host in PEM, whose common name is the host's id (default: the one that the agent has joined with)")
	flags.Var((*dirFlag)(&p.key), "peer-key", "key of that (default: the agent's)")
	flags.Var((*dirFlag)(&p.authorities), "peer-ca", "authorities that the certificates of other hosts come from, in PEM (default: the server's)")
}

// peering is what the agent is given of it, with the files of its own identity in the directory own unless others are named, and the address that other hosts get to know; nil for none.
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
	if p.certificate == "" && p.key == "" && p.authorities == "" {
		p.certificate, p.key, p.authorities = filepath.Join(own, "host.crt"), filepath.Join(own, "host.key"), filepath.Join(own, "ca.crt")
	}
	for _, file := range []struct{ flag, path string }{{"--peer-cert", p.certificate}, {"--peer-key", p.key}, {"--peer-ca", p.authorities}} {
		if !filepath.IsAbs(file.path) {
			return nil, "", fail(exitInvalid, fmt.Sprintf("%s names the file", file.flag), "--peer-listen needs a certificate, its key, and the authorities of others")
		}
	}
	return &agent.Peering{
		Listen: listen, Files: proxy.Peering{Certificate: p.certificate, Key: p.key, Authorities: p.authorities},
	}, at.String(), nil
}
