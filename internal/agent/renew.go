package agent

import (
	"context"
	"log/slog"
	"time"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/identity"
)

const (
	// renewLook is how often it is looked whether the host's certificate is to be renewed, and how soon that is tried
	// again. The clock may be put forward, so that it is no sleep until then.
	renewLook = time.Minute
	// renewPatience bounds one attempt.
	renewPatience = 30 * time.Second
)

// Renewer is what gives a host its next certificate. pinnacev1connect.AgentServiceClient is one.
type Renewer interface {
	Renew(ctx context.Context, req *connect.Request[pinnacev1.RenewRequest]) (*connect.Response[pinnacev1.RenewResponse], error)
}

var _ Renewer = pinnacev1connect.AgentServiceClient(nil)

// Renew gets the host its next certificate.
func Renew(ctx context.Context, m *identity.Member, from Renewer) error {
	ctx, cancel := context.WithTimeout(ctx, renewPatience)
	defer cancel()
	request, err := m.Request()
	if err != nil {
		return err
	}
	res, err := from.Renew(ctx, connect.NewRequest(&pinnacev1.RenewRequest{Request: request}))
	if err != nil {
		return err
	}
	return m.Renewed(res.Msg.Certificate)
}

// KeepRenewed renews the host's certificate whenever it is time, until ctx is done. While the server is away it goes on
// trying: the server takes a certificate that ended up to 30 days ago.
func KeepRenewed(ctx context.Context, m *identity.Member, from Renewer, log *slog.Logger) {
	tick := time.NewTicker(renewLook)
	defer tick.Stop()
	for {
		if !time.Now().Before(m.RenewAt()) {
			switch err := Renew(ctx, m, from); {
			case err == nil:
				log.Info("renewed the certificate of this host", "until", m.EndsAt())
			case ctx.Err() == nil:
				log.Warn("cannot renew the certificate of this host", "ends", m.EndsAt(), "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
