package agent

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// renewer is a server that renews, and may be away.
type renewer struct {
	t         *testing.T
	authority *identity.Authority

	mu    sync.Mutex
	away  bool        // guarded by mu
	asked int         // guarded by mu
	given []time.Time // guarded by mu; when it has renewed
}

func (r *renewer) Renew(_ context.Context, req *connect.Request[pinnacev1.RenewRequest]) (*connect.Response[pinnacev1.RenewResponse], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if r.away {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("away"))
	}
	csr, err := identity.ParseRequest(req.Msg.Request)
	if err != nil {
		return nil, err
	}
	r.given = append(r.given, time.Now())
	cert, err := r.authority.SignHost(csr, identity.Host{ID: "h1", Admission: "adm-1"}, time.Now())
	return connect.NewResponse(&pinnacev1.RenewResponse{Certificate: cert}), err
}

func (r *renewer) set(away bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = away
}

// TestKeepRenewed: a certificate is renewed every 8 hours, and as soon as the server is back.
func TestKeepRenewed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	synctest.Test(t, func(t *testing.T) {
		authority, err := identity.NewAuthority(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		m, err := identity.OpenMember(dir)
		if err != nil {
			t.Fatal(err)
		}
		server := &renewer{t: t, authority: authority}
		request, err := m.Request()
		if err != nil {
			t.Fatal(err)
		}
		first, err := server.Renew(t.Context(), connect.NewRequest(&pinnacev1.RenewRequest{Request: request}))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Admitted(first.Msg.Certificate, authority.Certificate().Raw, authority.Fingerprint()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var loop sync.WaitGroup
		loop.Go(func() { KeepRenewed(ctx, m, server, slog.New(slog.DiscardHandler)) })
		defer loop.Wait()
		defer cancel()

		time.Sleep(25 * time.Hour) // of the test's own clock
		synctest.Wait()
		server.mu.Lock()
		given := server.given
		server.mu.Unlock()
		if len(given) != 4 {
			t.Fatalf("renewed at %v", given)
		}
		for i := range given[1:] {
			if age := given[i+1].Sub(given[i]); age < 8*time.Hour || age > 8*time.Hour+2*renewLook {
				t.Errorf("renewed after %s", age)
			}
		}
		if !time.Now().Before(m.EndsAt()) {
			t.Error("the certificate has ended")
		}

		// The server is away until the certificate has ended.
		server.set(true)
		time.Sleep(40 * time.Hour)
		synctest.Wait()
		server.mu.Lock()
		asked := server.asked - len(given)
		server.mu.Unlock()
		if time.Now().Before(m.EndsAt()) || asked < 60 {
			t.Errorf("the certificate ends %s; asked %d times", m.EndsAt(), asked)
		}
		server.set(false)
		time.Sleep(renewLook + time.Second)
		synctest.Wait()
		if !time.Now().Before(m.EndsAt()) {
			t.Error("the certificate was not renewed when the server came back")
		}
	})
}
