package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// directories are where the roles keep what they have. Both move with flags, so that many hosts fit on one
// machine.
type directories struct {
	data, run string
}

func (d *directories) add(cmd *cobra.Command) {
	d.data, d.run = "/var/lib/pinnace", "/run/pinnace"
	cmd.Flags().Var((*dirFlag)(&d.data), "data-dir", "what must survive a reboot")
	cmd.Flags().Var((*dirFlag)(&d.run), "run-dir", "what must not")
}

// lock makes dir and takes its ownership.
func lock(dir string) (*durable.DirLock, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fail(exitInvalid, "--data-dir and --run-dir say where to keep things", "make a directory: %w", err)
	}
	l, err := durable.Lock(dir)
	if errors.Is(err, durable.ErrLocked) {
		return nil, fail(exitConflict, "stop it first, or use another --data-dir and --run-dir", "%w", err)
	}
	return l, err
}

// logger is what a role logs to.
func (c *cli) logger(role string, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(c.stderr, &slog.HandlerOptions{Level: level})).With("role", role)
}

// logFlag is the level that a role logs at.
type logFlag struct{ level slog.Level }

func (f *logFlag) add(cmd *cobra.Command, level slog.Level) {
	f.level = level
	cmd.Flags().TextVar(&f.level, "log-level", level, "debug, info, warn or error")
}

// ensureToken reads the secret in the file at path, and makes it first when there is none.
func ensureToken(path string) (string, error) {
	text, err := readToken(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	text = rand.Text() + rand.Text()
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	return text, durable.WriteFile(path, []byte(text+"\n"), 0o600)
}

// readToken reads the secret in the file at path.
func readToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(b))
	// What is shorter was not made by ensureToken; an empty file above all must not become a password.
	if len(text) < 20 {
		return "", fmt.Errorf("%s holds no token", path)
	}
	return text, nil
}

// listen opens a TCP port, and says who to look for when it is taken.
func listen(addr, what string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, portTaken(addr, what)
	}
	if err != nil {
		return nil, fail(exitInvalid, "", "%s cannot listen on %s: %w", what, addr, err)
	}
	return l, nil
}

func portTaken(addr, what string) error {
	return fail(exitConflict, "ss -ltnp shows which process has it", "%s cannot listen on %s: the port is taken", what, addr)
}

// serveHTTP serves handler on l, with TLS unless secure is nil, until ctx is done, then lets running calls finish for a moment.
func serveHTTP(ctx context.Context, l net.Listener, handler http.Handler, http2 *http.HTTP2Config, secure *tls.Config, log *slog.Logger) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		HTTP2:             http2,
	}
	server.Protocols.SetHTTP1(true)
	failed := make(chan error, 1)
	if secure == nil {
		server.Protocols.SetUnencryptedHTTP2(true) // gRPC clients on loopback
		go func() { failed <- server.Serve(l) }()
	} else {
		server.Protocols.SetHTTP2(true)
		server.TLSConfig = secure
		go func() { failed <- server.ServeTLS(l, "", "") }()
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		// Streams have no end of their own.
		err = server.Close()
		if err != nil {
			return err
		}
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// needRoot refuses to go on without root, and says what it is for.
func needRoot() error {
	if os.Geteuid() == 0 {
		return nil
	}
	return fail(exitDenied, "run it with sudo", "running microVMs needs root: it makes network namespaces, tap devices and a user for each VM")
}
