package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// clock is one that tests put forward.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) forward(d time.Duration) { c.ahead.Add(int64(d)) }

func newPlaneWithClock(t *testing.T) (*plane, *clock) {
	p, c := newPlane(t), &clock{}
	p.kill()
	p.change = func(o *Options) { o.Now = c.now }
	p.boot()
	return p, c
}

// anonymous is a client of AgentService that proves nothing.
func (p *plane) anonymous() pinnacev1connect.AgentServiceClient {
	return pinnacev1connect.NewAgentServiceClient(p.agentSide, p.agentAPI.URL)
}

func (p *plane) admit(token, host string, request []byte) ([]byte, error) {
	res, err := p.anonymous().Admit(p.t.Context(), connect.NewRequest(&pb.AdmitRequest{Token: token, Host: host, Request: request}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetCertificate(), nil
}

func newRequest(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func joinAs(c pinnacev1connect.AgentServiceClient, host string) error {
	_, err := c.Join(context.Background(), connect.NewRequest(&pb.JoinRequest{Host: &pb.HostFacts{
		Id: host, Architecture: "amd64", MemoryBytes: 1 << 30, CpuMilli: 1000, DiskBytes: 1 << 30,
	}}))
	return err
}

// TestJoinTokenIsUsedOnce: of many who have it at the same time one joins.
func TestJoinTokenIsUsedOnce(t *testing.T) {
	p := newPlane(t)
	token := p.joinToken("")
	const many = 16
	requests := make([][]byte, many)
	for i := range requests {
		requests[i] = newRequest(t)
	}
	var joined atomic.Int32
	var who atomic.Int32
	var group sync.WaitGroup
	for i := range many {
		group.Go(func() {
			_, err := p.admit(token, fmt.Sprintf("h%d", i), requests[i])
			switch {
			case err == nil:
				joined.Add(1)
				who.Store(int32(i))
			case connect.CodeOf(err) != connect.CodeUnauthenticated:
				t.Errorf("h%d: got %v", i, err)
			}
		})
	}
	group.Wait()
	if joined.Load() != 1 {
		t.Fatalf("%d hosts joined with one token", joined.Load())
	}
	// The one whose answer was lost asks again, with the key that it has. Nobody else does that for it.
	host := fmt.Sprintf("h%d", who.Load())
	cert, err := p.admit(token, host, requests[who.Load()])
	if err != nil {
		t.Fatalf("the same host again: %v", err)
	}
	if err := joinAs(p.clientWith(cert), host); err != nil {
		t.Errorf("with its certificate: %v", err)
	}
	_, err = p.admit(token, host, newRequest(t))
	wantCode(t, err, connect.CodeUnauthenticated, "join token")
}

func TestAdmissionIsRefused(t *testing.T) {
	p, c := newPlaneWithClock(t)
	p.hostCertificate("h1")
	bound := p.joinToken("h2")
	for what, test := range map[string]struct {
		token, host string
		request     []byte
		code        connect.Code
	}{
		"no token":          {"", "h3", testRequest(), connect.CodeUnauthenticated},
		"a made-up token":   {"pnj_" + strings.Repeat("a", 52), "h3", testRequest(), connect.CodeUnauthenticated},
		"a token of a user": {adminToken, "h3", testRequest(), connect.CodeUnauthenticated},
		"another host":      {bound, "h3", testRequest(), connect.CodeUnauthenticated},
		"a known host":      {p.joinToken(""), "h1", newRequest(t), connect.CodeAlreadyExists},
		"no request":        {bound, "h2", nil, connect.CodeInvalidArgument},
		"no host":           {bound, "", testRequest(), connect.CodeInvalidArgument},
		"a path":            {bound, "../h2", testRequest(), connect.CodeInvalidArgument},
		"a large request":   {bound, "h2", make([]byte, maxAdmission), connect.CodeInvalidArgument},
	} {
		_, err := p.admit(test.token, test.host, test.request)
		// Of what is too large the connection may break while it is sent.
		if got := connect.CodeOf(err); err == nil || got != test.code && len(test.request) < maxAdmission {
			t.Errorf("%s: got %v, want %s", what, err, test.code)
		}
	}
	c.forward(joinLife + time.Second)
	_, err := p.admit(bound, "h2", testRequest())
	wantCode(t, err, connect.CodeUnauthenticated, "expired")
	if joinAs(p.anonymous(), "h2") == nil {
		t.Error("a host joined without a certificate")
	}
	_, err = p.client.CreateJoinToken(t.Context(), connect.NewRequest(&pb.CreateJoinTokenRequest{ExpiresInSeconds: int64(maxJoinLife/time.Second) + 1}))
	wantCode(t, err, connect.CodeInvalidArgument, "expire")
}

// TestRenewal: a certificate is good for 24 hours, and can be renewed for 30 days more by a host that was not revoked.
func TestRenewal(t *testing.T) {
	p, c := newPlaneWithClock(t)
	cert := p.hostCertificate("h1")
	renew := func(cert []byte) ([]byte, error) {
		res, err := p.clientWith(cert).Renew(t.Context(), connect.NewRequest(&pb.RenewRequest{Request: testRequest()}))
		if err != nil {
			return nil, err
		}
		return res.Msg.GetCertificate(), nil
	}
	c.forward(8 * time.Hour)
	second, err := renew(cert)
	if err != nil {
		t.Fatal(err)
	}
	c.forward(17 * time.Hour)
	wantCode(t, joinAs(p.clientWith(cert), "h1"), connect.CodeUnauthenticated, "expired")
	if err := joinAs(p.clientWith(second), "h1"); err != nil {
		t.Errorf("with the renewed certificate: %v", err)
	}
	c.forward(29 * 24 * time.Hour)
	wantCode(t, joinAs(p.clientWith(second), "h1"), connect.CodeUnauthenticated, "expired")
	third, err := renew(second)
	if err != nil {
		t.Fatalf("after 29 days: %v", err)
	}
	if err := joinAs(p.clientWith(third), "h1"); err != nil {
		t.Errorf("with what was renewed late: %v", err)
	}
	c.forward(identity.Grace + 25*time.Hour)
	_, err = renew(third)
	wantCode(t, err, connect.CodeUnauthenticated, "expired")

	cert = p.hostCertificate("h1")
	if _, err := p.client.RevokeHost(t.Context(), connect.NewRequest(&pb.RevokeHostRequest{Host: "h1"})); err != nil {
		t.Fatal(err)
	}
	_, err = renew(cert)
	wantCode(t, err, connect.CodeUnauthenticated, "revoked")
	_, err = p.anonymous().Renew(t.Context(), connect.NewRequest(&pb.RenewRequest{Request: testRequest()}))
	wantCode(t, err, connect.CodeUnauthenticated, "certificate")
}

// TestRevokedHostIsOut: within 60 s, with what it has open.
func TestRevokedHostIsOut(t *testing.T) {
	p := newPlane(t)
	for _, end := range []struct {
		name string
		do   func(host string) error
	}{
		{"revoked", func(host string) error {
			_, err := p.client.RevokeHost(t.Context(), connect.NewRequest(&pb.RevokeHostRequest{Host: host}))
			return err
		}},
		{"admitted anew", func(host string) error {
			_, err := p.admit(p.joinToken(host), host, newRequest(t))
			return err
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			host := strings.ReplaceAll(end.name, " ", "-")
			client := p.hostClient(host)
			if err := joinAs(client, host); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			watch, err := client.WatchAssignments(ctx, connect.NewRequest(&pb.WatchAssignmentsRequest{Host: host}))
			if err != nil || !watch.Receive() {
				t.Fatal(err, watch.Err())
			}
			// A stream that the host says nothing on, whose handler waits for it to.
			silent := client.SendLogs(ctx)
			if err := silent.Send(nil); err != nil {
				t.Fatal(err)
			}
			if err := end.do(host); err != nil {
				t.Fatal(err)
			}
			if err := joinAs(client, host); connect.CodeOf(err) != connect.CodeUnauthenticated {
				t.Errorf("a new call: got %v", err)
			}
			for watch.Receive() {
			}
			if err := watch.Err(); connect.CodeOf(err) != connect.CodeUnauthenticated {
				t.Errorf("the stream of assignments ended with %v", err)
			}
			for err == nil {
				if err = silent.Send(&pb.SendLogsRequest{}); err != nil {
					break
				}
				select {
				case <-ctx.Done():
					err = ctx.Err()
				case <-time.After(50 * time.Millisecond):
				}
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Error("the stream of logs went on")
			}
		})
	}
}

// TestHostSpeaksForItself: each call of AgentService, for another host.
func TestHostSpeaksForItself(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	victim := p.agent("h1")
	rel := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", rel).GetId())
	instance := p.serves("dev", rel).GetId()
	spy := p.hostClient("h2")
	if err := joinAs(spy, "h2"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, joinAs(spy, "h1"), connect.CodePermissionDenied, "speaks for")
	_, err := spy.Report(t.Context(), connect.NewRequest(&pb.ReportRequest{Host: "h1"}))
	wantCode(t, err, connect.CodePermissionDenied, "speaks for")
	watch, err := spy.WatchAssignments(t.Context(), connect.NewRequest(&pb.WatchAssignmentsRequest{Host: "h1"}))
	if err == nil && watch.Receive() {
		t.Errorf("got the assignments of another host: %v", watch.Msg())
	}
	wantCode(t, watch.Err(), connect.CodePermissionDenied, "speaks for")
	own, err := spy.WatchAssignments(t.Context(), connect.NewRequest(&pb.WatchAssignmentsRequest{Host: "h2"}))
	if err != nil || !own.Receive() || len(own.Msg().GetAssignments())+len(own.Msg().GetReleases())+len(own.Msg().GetEnvironments()) > 0 {
		t.Errorf("an empty host got %v, %v", own.Msg(), own.Err())
	}
	// What it says of an instance elsewhere is not heard.
	_, err = spy.Report(t.Context(), connect.NewRequest(&pb.ReportRequest{Host: "h2", Instances: []*pb.InstanceReport{{Instance: instance, Attempt: 9, State: stateEnded, Final: true}}}))
	if err != nil || p.serves("dev", rel).GetId() != instance {
		t.Errorf("a report on an instance of another host: %v", err)
	}
	// Logs and commands are answered by the host that was asked. The request is known to the spy, as if it had guessed it.
	release := victim.hold()
	defer release()
	done := make(chan struct{})
	defer close(done)
	want := &logWant{request: &pb.LogRequest{Id: "log-1", Instance: instance}, lines: make(chan *pb.StreamLogsResponse), done: done, ended: make(chan struct{})}
	p.logs.add("log-1", "h1", instance, want)
	logs := spy.SendLogs(t.Context())
	_ = logs.Send(&pb.SendLogsRequest{Request: "log-1"}) // the answer says what became of it
	_, err = logs.CloseAndReceive()
	if err == nil || connect.CodeOf(err) == connect.CodeCanceled {
		t.Errorf("logs for another host: got %v", err)
	}
	p.execs.add("exec-1", "h1", instance, &execTask{host: "h1", task: &pb.ExecTask{Id: "exec-1"}, lost: make(chan struct{})})
	command := spy.ServeExec(t.Context())
	_ = command.Send(&pb.ServeExecRequest{Task: "exec-1"}) // as above
	_, err = command.Receive()
	wantCode(t, err, connect.CodeNotFound, "nobody waits")
	_ = command.CloseRequest()
	if _, err := spy.Report(t.Context(), connect.NewRequest(&pb.ReportRequest{})); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a report without a host: got %v", err)
	}
}

// TestEveryAgentCallHasARule: a call that is added without saying whose it is would be open to every host.
func TestEveryAgentCallHasARule(t *testing.T) {
	methods := pb.File_pinnace_v1_agent_proto.Services().ByName("AgentService").Methods()
	for i := range methods.Len() {
		m := methods.Get(i)
		procedure := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
		named, ok := hostNamedBy[procedure]
		if !ok {
			t.Errorf("%s has no rule in hostNamedBy", m.Name())
		}
		if named == nil && m.Input().Fields().ByName("host") != nil && m.Name() != "Admit" {
			t.Errorf("%s names a host, and its rule does not look at it", m.Name())
		}
	}
	if len(hostNamedBy) != methods.Len() {
		t.Errorf("%d rules for %d calls", len(hostNamedBy), methods.Len())
	}
}
