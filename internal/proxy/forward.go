package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// forwardTimeout is how long one of the host's resolvers has; forwardTries is how many are asked.
	forwardTimeout = 2 * time.Second
	forwardTries   = 3
	// resolvConfAge is how often resolv.conf is looked at.
	resolvConfAge = 5 * time.Second
)

// A forwarder asks the host's resolvers, from the proxy's own namespace.
type forwarder struct {
	path, port string

	mu sync.Mutex
	// Guarded by mu.
	servers  []string
	modified time.Time
	looked   time.Time
}

func newForwarder(path, port string) *forwarder { return &forwarder{path: path, port: port} }

// ask passes the question on, and nothing else of q: no option that a guest has put into it, and an id and a
// port that it cannot know.
func (f *forwarder) ask(ctx context.Context, q *dns.Msg, over string) (*dns.Msg, error) {
	servers, err := f.resolvers()
	if err != nil {
		return nil, err
	}
	ours := new(dns.Msg).SetQuestion(q.Question[0].Name, q.Question[0].Qtype)
	ours.CheckingDisabled, ours.AuthenticatedData = q.CheckingDisabled, q.AuthenticatedData
	opt := q.IsEdns0()
	ours.SetEdns0(maxUDPAnswer, opt != nil && opt.Do())
	client := &dns.Client{Net: over, Timeout: forwardTimeout, UDPSize: maxUDPAnswer}
	var errs []error
	for _, server := range servers[:min(len(servers), forwardTries)] {
		a, _, err := client.ExchangeContext(ctx, ours, server)
		if err == nil && (len(a.Question) != 1 || a.Question[0] != ours.Question[0]) {
			err = errors.New("the answer is to another question")
		}
		if err == nil {
			return passOn(a, q), nil
		}
		errs = append(errs, fmt.Errorf("ask resolver %s: %w", server, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// passOn makes a resolver's answer the answer to q. Options are between neighbours and stay here.
func passOn(a, q *dns.Msg) *dns.Msg {
	a.Id, a.RecursionDesired, a.Authoritative = q.Id, q.RecursionDesired, false
	kept := a.Extra[:0]
	for _, rr := range a.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			kept = append(kept, rr)
		}
	}
	a.Extra = kept
	a.Compress = true
	return a
}

func (f *forwarder) resolvers() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) < resolvConfAge && len(f.servers) > 0 {
		return f.servers, nil
	}
	st, err := os.Stat(f.path)
	if err != nil {
		return nil, fmt.Errorf("find the host's resolvers: %w", err)
	}
	f.looked = time.Now()
	if st.ModTime().Equal(f.modified) && len(f.servers) > 0 {
		return f.servers, nil
	}
	c, err := dns.ClientConfigFromFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("find the host's resolvers: %w", err)
	}
	if len(c.Servers) == 0 {
		return nil, fmt.Errorf("find the host's resolvers: %s names none", f.path)
	}
	f.servers = f.servers[:0:0]
	for _, s := range c.Servers {
		f.servers = append(f.servers, net.JoinHostPort(s, f.port))
	}
	f.modified = st.ModTime()
	return f.servers, nil
}
