package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// maxProbeBody is how much of an answer is read; the rest has no say.
const maxProbeBody = 64 << 10

// check is one probe with its pace.
type check struct {
	interval   time.Duration
	pass, fail int
	// once asks once, for as long as the manifest allows.
	once func(ctx context.Context) error
}

// readyCheck is the manifest's ready check, or the default one: every TCP port accepts a connection. With
// no TCP port there is nothing to ask; the instance is ready when its process runs, and the rollout's hold
// shows whether it stays alive.
func (h *health) readyCheck() *check {
	m := h.workload.manifest
	if m.Health.Ready != nil {
		return h.check(m.Health.Ready)
	}
	return &check{interval: 5 * time.Second, pass: 1, fail: 3, once: bounded(2*time.Second, h.dialPorts)}
}

func (h *health) check(p *manifest.Probe) *check {
	c := &check{interval: p.Interval, pass: p.Pass, fail: p.Fail}
	port := h.workload.manifest.Ports[p.Port]
	switch p.Type {
	case "exec":
		// The guest keeps the time itself, and tells that it is up.
		c.once = func(ctx context.Context) error { return h.exec(ctx, p) }
	case "http":
		c.once = bounded(p.Timeout, func(ctx context.Context) error { return h.get(ctx, port, p) })
	default:
		c.once = bounded(p.Timeout, func(ctx context.Context) error { return h.dialPort(ctx, port) })
	}
	return c
}

func bounded(timeout time.Duration, probe func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return probe(ctx)
	}
}

func (h *health) address(port manifest.Port) netip.AddrPort {
	return addrPort(h.attachment.IPv4.Addr(), port.Port)
}

func (h *health) dialPorts(ctx context.Context) error {
	ports := h.workload.manifest.Ports
	for _, name := range slices.Sorted(maps.Keys(ports)) {
		if ports[name].Protocol != "tcp" {
			continue
		}
		if err := h.dialPort(ctx, ports[name]); err != nil {
			return fmt.Errorf("port %s (%d): %w", name, ports[name].Port, err)
		}
	}
	return nil
}

func (h *health) dialPort(ctx context.Context, port manifest.Port) error {
	conn, err := h.dial(ctx, port)
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial connects for a probe. Who expects a PROXY header is told that nobody is behind this connection.
func (h *health) dial(ctx context.Context, port manifest.Port) (net.Conn, error) {
	conn, err := h.agent.Network.Dial(ctx, h.assignment.Environment, h.address(port))
	if err != nil {
		return nil, shortDialError(err)
	}
	if port.ProxyProtocol != manifest.ProxyProtocolV2 {
		return conn, nil
	}
	// It fits into the buffer of a connection that is new.
	if _, err := conn.Write(proxy.LocalHeader()); err != nil {
		_ = conn.Close()
		return nil, shortDialError(err)
	}
	return conn, nil
}

func (h *health) get(ctx context.Context, port manifest.Port, p *manifest.Probe) error {
	// The connection is made here because a Transport goes on dialling when the request's time is up.
	conn, err := h.dial(ctx, port)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the answer is all that counts
	transport := &http.Transport{
		DisableKeepAlives:      true,
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		MaxResponseHeaderBytes: 64 << 10,
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // A redirect is a failure; its status says so.
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.address(port).String()+p.Path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "pinnace-health")
	res, err := client.Do(req)
	if err != nil {
		return shortDialError(err)
	}
	_, readErr := io.Copy(io.Discard, io.LimitReader(res.Body, maxProbeBody))
	if err := errors.Join(readErr, res.Body.Close()); err != nil {
		return shortDialError(err)
	}
	if !slices.Contains(p.Status, res.StatusCode) {
		return fmt.Errorf("GET %s answered %d, not %s", p.Path, res.StatusCode, statuses(p.Status))
	}
	return nil
}

func statuses(codes []int) string {
	texts := make([]string, len(codes))
	for i, code := range codes {
		texts[i] = fmt.Sprint(code)
	}
	return strings.Join(texts, " or ")
}

func (h *health) exec(ctx context.Context, p *manifest.Probe) error {
	res, err := h.guest.Exec(ctx, p.Command, p.Timeout)
	switch {
	case err != nil:
		return err
	case res.Error != "":
		return errors.New(res.Error)
	case res.TimedOut:
		return &checkError{fmt.Errorf("%s did not end within %s", p.Command[0], p.Timeout), firstWords(res)}
	case res.Code != 0:
		return &checkError{fmt.Errorf("%s exited with status %d", p.Command[0], res.Code), firstWords(res)}
	}
	return nil
}

// maxSaid is how much of what a check by a command wrote is told, in bytes.
const maxSaid = 256

// firstWords is the beginning of what a command wrote, on one line that can do a terminal no harm.
func firstWords(res guest.ExecResult) string {
	said := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(res.Output), "\uFFFD"))
	said = strings.TrimSpace(said)
	if len(said) > maxSaid {
		return strings.ToValidUTF8(said[:maxSaid], "") + "…"
	}
	if said != "" && res.Truncated {
		return said + "…"
	}
	return said
}

// shortDialError leaves out what a person who reads it knows already.
func shortDialError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		if op.Timeout() {
			return errors.New("no answer in time")
		}
		return op.Err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the connection was closed without an answer")
	}
	return err
}
