package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/registry/embedded"
)

// registryRole is a registry on loopback, for machines that have none.
type registryRole struct {
	dir    string
	listen string
	log    *slog.Logger
}

func (c *cli) newRegistry() *cobra.Command {
	var dirs directories
	var level logFlag
	role := registryRole{}
	cmd := &cobra.Command{
		Use:   "registry",
		Short: "Run a registry on loopback; keep logins at others for hosts",
		Long: `Registry runs an OCI registry that any standard client can push to. It has no access control, so
it listens on loopback only. Its access log is DATA_DIR/registry/access.log.

Its sub-commands are about other registries: what hosts pull from them with.`,
		Example: "  pinnace registry\n  buildah push --tls-verify=false hello docker://127.0.0.1:5000/hello:v1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			role.dir = filepath.Join(dirs.data, "registry")
			role.log = c.logger("registry", level.level)
			held, err := lock(role.dir)
			if err != nil {
				return err
			}
			return errors.Join(role.run(cmd.Context()), held.Unlock())
		},
	}
	dirs.add(cmd)
	level.add(cmd, slog.LevelInfo)
	role.add(cmd, "listen")
	cmd.AddCommand(c.newRegistryLogin(), c.newRegistryLogout(), c.newRegistryList())
	return cmd
}

func (r *registryRole) add(cmd *cobra.Command, flag string) {
	cmd.Flags().StringVar(&r.listen, flag, "127.0.0.1:5000", "where the registry listens")
}

func (r *registryRole) run(ctx context.Context) error {
	if err := loopbackOnly(r.listen); err != nil {
		return err
	}
	if err := durable.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	access, err := os.OpenFile(filepath.Join(r.dir, "access.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer access.Close()
	reg, err := embedded.New(embedded.Options{Dir: filepath.Join(r.dir, "storage"), Addr: r.listen, AccessLog: access})
	if errors.Is(err, syscall.EADDRINUSE) {
		return portTaken(r.listen, "the registry")
	}
	if err != nil {
		return err
	}
	r.log.Info("the registry is up", "addr", r.listen)
	return reg.Run(ctx)
}

// loopbackOnly refuses an address that others could reach.
func loopbackOnly(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil || !isLoopback(host) {
		return fail(exitInvalid, "use 127.0.0.1:PORT, and an SSH tunnel from elsewhere",
			"%q is not a loopback address: what listens here has no encryption yet", addr)
	}
	return nil
}
