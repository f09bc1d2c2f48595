package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// testAuthority is one for all tests: making one takes long on a busy machine.
var testAuthority = sync.OnceValue(func() *identity.Authority {
	a, err := identity.NewAuthority(time.Now().Add(-time.Hour))
	if err != nil {
		panic(err)
	}
	return a
})

// testKey is that of all hosts of the tests, and testRequest the certificate request for it.
var (
	testKey = sync.OnceValue(func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		return key
	})
	testRequest = sync.OnceValue(func() []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, testKey())
		if err != nil {
			panic(err)
		}
		return der
	})
)

// certificateHeader has the certificate of a request in the tests that leave TLS out, which proves nothing but costs much.
const certificateHeader = "Test-Certificate"

// provenHost has a request come with the certificate in its header.
func provenHost(r *http.Request) {
	der, err := base64.StdEncoding.DecodeString(r.Header.Get(certificateHeader))
	if cert, parseErr := x509.ParseCertificate(der); err == nil && parseErr == nil {
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
	}
}

// withCertificate sends a certificate along.
type withCertificate struct {
	der  []byte
	next http.RoundTripper
}

func (w withCertificate) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(certificateHeader, base64.StdEncoding.EncodeToString(w.der))
	return w.next.RoundTrip(r)
}

// joinToken makes one for a host; "" for any.
func (p *plane) joinToken(host string) string {
	p.t.Helper()
	res, err := p.client.CreateJoinToken(p.t.Context(), connect.NewRequest(&pb.CreateJoinTokenRequest{Host: host}))
	if err != nil {
		p.t.Fatal(err)
	}
	return res.Msg.GetSecret()
}

// hostCertificate admits a host, unless it is, and makes a certificate for it.
func (p *plane) hostCertificate(id string) []byte {
	p.t.Helper()
	var admission *fleet.Admission
	find := func() { p.ledger.read(func(st *fleet.State) { admission = st.Admission(id) }) }
	if find(); admission == nil {
		anonymous := pinnacev1connect.NewAgentServiceClient(p.agentSide, p.agentAPI.URL)
		res, err := anonymous.Admit(p.t.Context(), connect.NewRequest(&pb.AdmitRequest{Token: p.joinToken(id), Host: id, Request: testRequest()}))
		if err != nil {
			p.t.Fatal(err)
		}
		return res.Msg.GetCertificate()
	}
	csr, err := identity.ParseRequest(testRequest())
	if err != nil {
		p.t.Fatal(err)
	}
	der, err := testAuthority().SignHost(csr, identity.Host{ID: id, Admission: admission.ID}, p.now())
	if err != nil {
		p.t.Fatal(err)
	}
	return der
}

// hostClient speaks for a host.
func (p *plane) hostClient(id string) pinnacev1connect.AgentServiceClient {
	p.t.Helper()
	return p.clientWith(p.hostCertificate(id))
}

func (p *plane) clientWith(certificate []byte) pinnacev1connect.AgentServiceClient {
	return pinnacev1connect.NewAgentServiceClient(&http.Client{Transport: withCertificate{certificate, p.agentSide.Transport}}, p.agentAPI.URL)
}

// admitPlainly has a host let in by a server in another process, and gives what it speaks to that with: a connection of its
// own, without TLS.
func admitPlainly(t *testing.T, control pinnacev1connect.ControlServiceClient, at, id string) pinnacev1connect.AgentServiceClient {
	t.Helper()
	proof := withCertificate{admittedPlainly(t, control, at, id), httpClient("").Transport}
	return pinnacev1connect.NewAgentServiceClient(&http.Client{Transport: proof}, at)
}

// admittedPlainly is the certificate of a host that is let in so.
func admittedPlainly(t *testing.T, control pinnacev1connect.ControlServiceClient, at, id string) []byte {
	t.Helper()
	token, err := control.CreateJoinToken(t.Context(), connect.NewRequest(&pb.CreateJoinTokenRequest{Host: id}))
	if err != nil {
		t.Fatal(err)
	}
	own := httpClient("")
	defer own.CloseIdleConnections()
	res, err := pinnacev1connect.NewAgentServiceClient(own, at).Admit(t.Context(), connect.NewRequest(&pb.AdmitRequest{Token: token.Msg.GetSecret(), Host: id, Request: testRequest()}))
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg.GetCertificate()
}
