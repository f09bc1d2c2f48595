package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// fakeServer is a server that assigns what a test tells it to, and remembers what is reported.
type fakeServer struct {
	pinnacev1connect.UnimplementedAgentServiceHandler

	errands map[string]*fakeTask  // guarded by mu; by id
	handed  []*pinnacev1.HostTask // guarded by mu

	http *httptest.Server
	away atomic.Bool // answers nothing but 503

	refused atomic.Int32 // calls while away

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced with every change of what follows
	set      *pinnacev1.WatchAssignmentsResponse
	asks     []*pinnacev1.LogRequest
	tasks    []*pinnacev1.ExecTask
	execs    map[string]*fakeExec // by task; who waits for it
	joins    int
	events   []string                               // the hashes of the log's events; none for a server of an older version
	streams  int                                    // of assignments
	reports  map[string][]*pinnacev1.InstanceReport // distinct ones, in order
	last     *pinnacev1.ReportRequest
	lines    map[string][]*pinnacev1.StreamLogsResponse // by request
	batches  map[string]int
	finished map[string]bool // requests that the agent has answered to the end
	unread   map[string]bool // requests that nobody reads any more
}

func newFakeServer(t testing.TB) *fakeServer {
	s := &fakeServer{
		changed: make(chan struct{}), set: &pinnacev1.WatchAssignmentsResponse{Revision: 1, Complete: true},
		reports: map[string][]*pinnacev1.InstanceReport{}, lines: map[string][]*pinnacev1.StreamLogsResponse{},
		execs: map[string]*fakeExec{}, batches: map[string]int{}, finished: map[string]bool{}, unread: map[string]bool{},
	}
	_, handler := pinnacev1connect.NewAgentServiceHandler(s)
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.away.Load() {
			s.refused.Add(1)
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	// As between the real ones. Over HTTP/1 a server cannot end a stream of which it has read enough.
	s.http.Config.Protocols = new(http.Protocols)
	s.http.Config.Protocols.SetUnencryptedHTTP2(true)
	s.http.Start()
	t.Cleanup(func() {
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// leave makes the server unreachable, for those who talk to it already too.
func (s *fakeServer) leave() {
	s.change(func() { s.away.Store(true) })
}

func (s *fakeServer) comeBack() { s.away.Store(false) }

// change changes what is assigned, asked or remembered, and lets everybody know.
func (s *fakeServer) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// assign changes the set of assignments.
func (s *fakeServer) assign(f func(set *pinnacev1.WatchAssignmentsResponse)) {
	s.change(func() {
		set := proto.CloneOf(s.set)
		set.Revision++
		f(set)
		s.set = set
	})
}

func (s *fakeServer) Join(_ context.Context, req *connect.Request[pinnacev1.JoinRequest]) (*connect.Response[pinnacev1.JoinResponse], error) {
	s.change(func() { s.joins++ })
	s.mu.Lock()
	defer s.mu.Unlock()
	res := &pinnacev1.JoinResponse{}
	if n := uint64(len(s.events)); n > 0 {
		res.Head = &pinnacev1.LogHead{Log: "00", Seq: n, Hash: []byte(s.events[n-1])}
		if seen := req.Msg.SeenSeq; seen > 0 && seen <= n {
			res.SeenHash = []byte(s.events[seen-1])
		}
	}
	return connect.NewResponse(res), nil
}

func (s *fakeServer) WatchAssignments(ctx context.Context, _ *connect.Request[pinnacev1.WatchAssignmentsRequest], stream *connect.ServerStream[pinnacev1.WatchAssignmentsResponse]) error {
	s.change(func() { s.streams++ })
	defer s.change(func() { s.streams-- })
	var sent uint64
	asked, given, handed := 0, 0, 0
	for {
		if s.away.Load() {
			return connect.NewError(connect.CodeUnavailable, errors.New("going away"))
		}
		s.mu.Lock()
		changed := s.changed
		msg := &pinnacev1.WatchAssignmentsResponse{Revision: s.set.Revision}
		if sent != s.set.Revision {
			msg = proto.CloneOf(s.set)
		}
		sent = s.set.Revision
		msg.LogRequests = s.asks[asked:]
		asked = len(s.asks)
		msg.ExecTasks = s.tasks[given:]
		given = len(s.tasks)
		msg.HostTasks = s.handed[handed:]
		handed = len(s.handed)
		s.mu.Unlock()
		if msg.Complete || len(msg.LogRequests) > 0 || len(msg.ExecTasks)+len(msg.HostTasks) > 0 {
			if err := stream.Send(msg); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *fakeServer) Report(_ context.Context, req *connect.Request[pinnacev1.ReportRequest]) (*connect.Response[pinnacev1.ReportResponse], error) {
	s.change(func() {
		s.last = req.Msg
		for _, r := range req.Msg.Instances {
			if old := s.reports[r.Instance]; len(old) == 0 || !proto.Equal(old[len(old)-1], r) {
				s.reports[r.Instance] = append(old, r)
			}
		}
	})
	return connect.NewResponse(&pinnacev1.ReportResponse{}), nil
}

func (s *fakeServer) SendLogs(_ context.Context, stream *connect.ClientStream[pinnacev1.SendLogsRequest]) (*connect.Response[pinnacev1.SendLogsResponse], error) {
	request := ""
	for stream.Receive() {
		msg := stream.Msg()
		request = msg.Request
		unread := false
		s.change(func() {
			s.lines[request] = append(s.lines[request], msg.Lines...)
			s.batches[request]++
			unread = s.unread[request]
		})
		if unread {
			return nil, connect.NewError(connect.CodeCanceled, errors.New("nobody reads"))
		}
	}
	s.change(func() { s.finished[request] = true })
	return connect.NewResponse(&pinnacev1.SendLogsResponse{}), stream.Err()
}

// fakeExec is the server's side of one command.
type fakeExec struct {
	say  chan *pinnacev1.ServeExecResponse
	hear chan *pinnacev1.ServeExecRequest // closed when the agent says no more
	gone chan struct{}                    // closed when nobody waits for the command any more
}

func (s *fakeServer) ServeExec(ctx context.Context, stream *connect.BidiStream[pinnacev1.ServeExecRequest, pinnacev1.ServeExecResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	s.mu.Lock()
	x := s.execs[first.Task]
	s.mu.Unlock()
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		defer close(x.hear)
		for {
			m, err := stream.Receive()
			if err != nil {
				return
			}
			select {
			case x.hear <- m:
			case <-x.gone:
				return
			}
		}
	}()
	for {
		select {
		case m := <-x.say:
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-heard:
			return nil
		case <-x.gone:
			return connect.NewError(connect.CodeCanceled, errors.New("nobody waits"))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fakeNetwork is a host's network of which only the names exist. What listens inside an environment does so on
// the loopback interface in truth.
type fakeNetwork struct {
	mu        sync.Mutex
	attached  map[string]map[string]network.Attachment // by environment and instance
	virtual   map[string][]netip.Addr
	listening map[string]map[netip.AddrPort]string // by environment: where in truth
	next      byte
	log       []string // what was done, in order
	broken    map[string]error
	egress    map[string]network.Egress // by instance
}

var _ Network = (*fakeNetwork)(nil)

func newFakeNetwork() *fakeNetwork {
	return &fakeNetwork{
		attached: map[string]map[string]network.Attachment{}, virtual: map[string][]netip.Addr{},
		listening: map[string]map[netip.AddrPort]string{}, broken: map[string]error{}, next: 1,
		egress: map[string]network.Egress{},
	}
}

func (n *fakeNetwork) EnsureEnvironment(_ context.Context, env string) (*network.Namespace, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attached[env] == nil {
		n.attached[env] = map[string]network.Attachment{}
		n.listening[env] = map[netip.AddrPort]string{}
		n.log = append(n.log, "make "+env)
	}
	return &network.Namespace{Name: env, Path: "/run/netns/" + env}, nil
}

func (n *fakeNetwork) RemoveEnvironment(_ context.Context, env string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, env)
	n.log = append(n.log, "remove "+env)
	return nil
}

func (n *fakeNetwork) Environments() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.attached))
}

func (n *fakeNetwork) Attach(_ context.Context, env, instance string, uid uint32) (*network.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attached[env] == nil {
		return nil, network.ErrNotFound
	}
	if at, ok := n.attached[env][instance]; ok {
		at.UID = uid
		n.attached[env][instance] = at
		return &at, nil
	}
	n.next++
	at := network.Attachment{
		Environment: env, Instance: instance, Netns: "/run/netns/" + env, Tap: fmt.Sprintf("tap%d", n.next), UID: uid,
		MAC: net.HardwareAddr{2, 0, 0, 0, 0, n.next}, MTU: 1500,
		IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100, 0, n.next}), 16), Gateway4: network.Gateway4,
		IPv6: netip.MustParsePrefix(fmt.Sprintf("fd00:7069:6e6e:100::%x/64", n.next)), Gateway6: network.Gateway6,
	}
	n.attached[env][instance] = at
	return &at, nil
}

func (n *fakeNetwork) SetEgress(_ context.Context, env, instance string, egress network.Egress) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.attached[env][instance]; !ok {
		return network.ErrNotFound
	}
	n.egress[instance] = egress
	return nil
}

func (n *fakeNetwork) Detach(_ context.Context, env, instance string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attached[env] == nil {
		n.log = append(n.log, "detach from nothing")
	}
	delete(n.attached[env], instance)
	delete(n.egress, instance)
	return nil
}

func (n *fakeNetwork) Attachments(env string) ([]network.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Values(n.attached[env])), nil
}

func (n *fakeNetwork) SetVirtualAddresses(_ context.Context, env string, addrs []netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.virtual[env] = addrs
	return n.broken[env]
}

func (n *fakeNetwork) Dial(ctx context.Context, env string, address netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	truth, ok := n.listening[env][address]
	n.mu.Unlock()
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	return new(net.Dialer).DialContext(ctx, "tcp", truth)
}

// listen opens a port of the guest behind a tap.
func (n *fakeNetwork) listen(tap string, port int) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for env, all := range n.attached {
		for _, at := range all {
			if at.Tap == tap {
				here := netip.AddrPortFrom(at.IPv4.Addr(), uint16(port))
				n.listening[env][here] = l.Addr().String()
				return &guestListener{l, func() {
					n.mu.Lock()
					defer n.mu.Unlock()
					delete(n.listening[env], here)
				}}, nil
			}
		}
	}
	return nil, errors.Join(fmt.Errorf("no tap %s", tap), l.Close())
}

type guestListener struct {
	net.Listener
	forget func()
}

func (l *guestListener) Close() error {
	l.forget()
	return l.Listener.Close()
}

// empty tells whether nothing is attached anywhere.
func (n *fakeNetwork) empty() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, all := range n.attached {
		if len(all) > 0 {
			return false
		}
	}
	return true
}

// fakeProxy takes configurations that the real one would take, and says of ports and connections what a test
// wants it to say.
type fakeProxy struct {
	mu     sync.Mutex
	config proxy.Config
	states map[string][]proxy.BackendState // of each backend, without repetitions; "" when it was gone
	bind   map[string]string               // errors by listener
	open   map[string]int                  // connections by backend
	err    error
	hold   chan struct{} // when set, Apply takes until it is closed
	gaveUp bool          // somebody ended a context while Apply was at work
}

var _ Proxy = (*fakeProxy)(nil)

func newFakeProxy() *fakeProxy {
	return &fakeProxy{states: map[string][]proxy.BackendState{}, bind: map[string]string{}, open: map[string]int{}}
}

func (p *fakeProxy) Apply(ctx context.Context, c proxy.Config) (*proxy.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if hold := p.hold; hold != nil {
		p.mu.Unlock()
		select {
		case <-hold:
		case <-ctx.Done():
		}
		p.mu.Lock()
		p.gaveUp = p.gaveUp || ctx.Err() != nil
	}
	if err := errors.Join(ctx.Err(), c.Validate(), p.err); err != nil {
		return nil, err
	}
	p.config = c
	now := map[string]proxy.BackendState{}
	for id := range p.states {
		now[id] = ""
	}
	for _, l := range c.Listeners {
		for _, b := range l.Backends {
			now[b.ID] = b.State
		}
	}
	for id, state := range now {
		if seen := p.states[id]; len(seen) == 0 || seen[len(seen)-1] != state {
			p.states[id] = append(seen, state)
		}
	}
	return p.status(), nil
}

func (p *fakeProxy) Status(ctx context.Context) (*proxy.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := errors.Join(ctx.Err(), p.err); err != nil {
		return nil, err
	}
	return p.status(), nil
}

func (p *fakeProxy) status() *proxy.Status {
	s := &proxy.Status{}
	open := maps.Clone(p.open) // all of them through the first listener
	for _, l := range p.config.Listeners {
		status := proxy.ListenerStatus{ID: l.ID, Error: p.bind[l.ID]}
		for _, b := range l.Backends {
			status.Backends = append(status.Backends, proxy.BackendStatus{ID: b.ID, State: b.State, Open: open[b.ID]})
			delete(open, b.ID)
		}
		s.Listeners = append(s.Listeners, status)
	}
	return s
}

func (p *fakeProxy) do(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// listener is one of the configuration in force.
func (p *fakeProxy) listener(id string) (proxy.Listener, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.config.Listeners {
		if l.ID == id {
			return l, true
		}
	}
	return proxy.Listener{}, false
}

// history is what states a backend had, in order.
func (p *fakeProxy) history(id string) []proxy.BackendState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.states[id])
}
