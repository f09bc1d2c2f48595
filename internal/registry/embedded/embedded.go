// Package embedded is a container registry in this process: the one of `pinnace dev` and `pinnace registry`,
// so that a first deploy needs no other service. It is distribution, the reference registry, over a local
// directory.
//
// It has no accounts, and listens on loopback only unless told otherwise: whoever reaches it may push and
// delete. It removes no unreferenced blobs; a registry that has to be small or shared should be a real one.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/sirupsen/logrus"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// DefaultAddr is where the registry listens when nothing else is asked for.
const DefaultAddr = "127.0.0.1:5000"

// Options of a Registry.
type Options struct {
	// Dir holds everything that was pushed. It is created if it is missing and locked while the registry
	// exists: a directory has one owner.
	Dir string
	// Addr is an IP address and a port; port 0 takes a free one. Empty means DefaultAddr.
	Addr string
	// AllowRemote permits an Addr that other machines can reach.
	AllowRemote bool
	// AccessLog gets a line for each request: method, path, status, and the quoted user agent. nil for none.
	AccessLog io.Writer
}

// Registry is a registry that has its address and its directory. Run serves it.
type Registry struct {
	listener net.Listener
	lock     *durable.DirLock
	store    driver.StorageDriver
	app      *handlers.App
	server   *http.Server
}

// uploads that nobody went on with for so long are removed.
const staleUpload = 24 * time.Hour

// New locks the directory and opens the port. The caller must call Run, which gives both back.
func New(o Options) (*Registry, error) {
	r, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	return r, nil
}

func open(o Options) (*Registry, error) {
	if o.Addr == "" {
		o.Addr = DefaultAddr
	}
	at, err := netip.ParseAddrPort(o.Addr)
	if err != nil {
		return nil, fmt.Errorf("address %q is not an IP address and a port: %w", o.Addr, err)
	}
	if !at.Addr().IsLoopback() && !o.AllowRemote {
		return nil, fmt.Errorf("address %s can be reached from other machines, and this registry lets everybody push; give a loopback address, or allow it", at)
	}
	if err := durable.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := durable.Lock(o.Dir)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", at.String())
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	// distribution logs every request and error to the global logger of a library that nothing else here
	// uses; what matters of it is in the access log and in the answers.
	logrus.SetOutput(io.Discard)
	registerDriver()
	r := &Registry{listener: listener, lock: lock, store: newStore(o.Dir)}
	// Cancelled by Shutdown and not by a context from outside: requests that are under way may end first.
	r.app = handlers.NewApp(context.Background(), config(o.Dir))
	var handler http.Handler = r.app
	// The registry has no accounts. A web page that the user looks at must not be able to push to it.
	handler = http.NewCrossOriginProtection().Handler(handler)
	if o.AccessLog != nil {
		handler = &accessLog{next: handler, out: o.AccessLog}
	}
	r.server = &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	return r, nil
}

func config(dir string) *configuration.Configuration {
	return &configuration.Configuration{Storage: configuration.Storage{
		driverName: {"rootdirectory": dir},
		"delete":   {"enabled": true},
		// Run does this itself: distribution's own purger is a goroutine that cannot be waited for.
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
	}}
}

// Addr is the address that the registry listens on, as host:port.
func (r *Registry) Addr() string { return r.listener.Addr().String() }

// Run serves until ctx ends, gives requests under way five seconds to finish, and returns when all that it
// started has ended. The address and the directory are free then.
func (r *Registry) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var background sync.WaitGroup
	background.Go(func() { r.purgeUploads(ctx) })
	background.Go(func() {
		<-ctx.Done()
		// ctx is over; the requests under way still deserve an end.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := r.server.Shutdown(grace); err != nil {
			_ = r.server.Close() // what is still open is cut off: that is all that is left to do
		}
	})
	err := r.server.Serve(r.listener)
	stop()
	background.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	} else {
		err = fmt.Errorf("serve registry: %w", err)
	}
	return errors.Join(err, r.app.Shutdown(), r.lock.Unlock())
}

// purgeUploads removes what interrupted pushes left behind, at the start and once a day. Failures show as
// disk space only, and the next round tries again.
func (r *Registry) purgeUploads(ctx context.Context) {
	ticker := time.NewTicker(staleUpload)
	defer ticker.Stop()
	for {
		storage.PurgeUploads(ctx, r.store, time.Now().Add(-staleUpload), true)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// accessLog writes the line of each request when it has been answered.
type accessLog struct {
	next http.Handler
	mu   sync.Mutex // one line at a time
	out  io.Writer
}

func (l *accessLog) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	answer := &recorder{ResponseWriter: w, status: http.StatusOK}
	path := req.URL.EscapedPath()
	defer func() { // also when the handler gives up a broken connection by a panic
		l.mu.Lock()
		defer l.mu.Unlock()
		// A log that cannot be written is no reason to refuse service.
		_, _ = fmt.Fprintf(l.out, "%s %s %d %q\n", req.Method, path, answer.status, req.UserAgent())
	}()
	l.next.ServeHTTP(answer, req)
}

type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
