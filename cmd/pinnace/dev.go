package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// devRole is everything on one machine.
type devRole struct {
	dirs     directories
	server   serverRole
	agent    agentRole
	registry registryRole
	context  bool
}

func (c *cli) newDev() *cobra.Command {
	var level logFlag
	role := devRole{agent: agentRole{registries: c.registryOptions}}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run server, agent and a registry on this machine",
		Long: `Dev runs everything that Pinnace needs on one machine, with an embedded database and registry.
At the first start it makes keys, an admin token, the environment "dev", and a context in your
configuration, so that the other commands find it.

Ctrl-C stops all microVMs. When it was killed instead, they run on, and the next start takes them
over.`,
		Example: "  sudo pinnace dev",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			return c.runDev(cmd.Context(), &role, level.level)
		},
	}
	level.add(cmd, slog.LevelWarn)
	role.dirs.add(cmd)
	role.server.add(cmd)
	role.agent.add(cmd)
	role.registry.add(cmd, "registry-listen")
	cmd.Flags().BoolVar(&role.context, "context", true, "write a context for the other commands")
	return cmd
}

func (c *cli) runDev(ctx context.Context, r *devRole, level slog.Level) (err error) {
	r.server.dir = filepath.Join(r.dirs.data, "server")
	r.server.keys = c.keyPlaceOf(r.server.dir, "")
	r.registry.dir = filepath.Join(r.dirs.data, "registry")
	r.agent.dirs = r.dirs
	r.agent.servers = []string{"https://" + r.server.agentListen}
	r.server.log, r.agent.log, r.registry.log = c.logger("server", level), c.logger("agent", level), c.logger("registry", level)
	r.agent.logLevel = level
	r.agent.stopVMs = true
	for _, dir := range []string{r.server.dir, r.registry.dir} {
		held, err := lock(dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, held.Unlock()) }()
	}
	r.agent.join = func(ctx context.Context) (string, error) { return r.joinToken(ctx) }

	// The agent ends before the server, which is to hear how its instances ended.
	serverCtx, endServer := context.WithCancel(context.WithoutCancel(ctx))
	defer endServer()
	group, serverCtx := errgroup.WithContext(serverCtx)
	agentCtx, endAgent := context.WithCancel(ctx)
	defer endAgent()
	context.AfterFunc(serverCtx, endAgent)

	up := make(chan struct{})
	group.Go(func() error { return r.server.run(serverCtx, func() { close(up) }) })
	group.Go(func() error { return r.registry.run(serverCtx) })
	select {
	case <-up:
	case <-serverCtx.Done():
		return group.Wait()
	}
	if err := c.firstStart(ctx, r); err != nil {
		endServer()
		return errors.Join(err, group.Wait())
	}
	agentErr := r.agent.run(agentCtx, func(with *machines) { c.greet(r, with) })
	endServer()
	return errors.Join(agentErr, group.Wait())
}

// joinToken lets this host join, at the first start and when the server does not know it any more.
func (r *devRole) joinToken(ctx context.Context) (string, error) {
	_, _, client, err := r.server.local()
	if err != nil {
		return "", err
	}
	facts, err := r.agent.facts()
	if err != nil {
		return "", err
	}
	res, err := client.CreateJoinToken(ctx, connect.NewRequest(&pinnacev1.CreateJoinTokenRequest{Host: facts.Id}))
	if err != nil {
		return "", fmt.Errorf("let this host join: %w", err)
	}
	return res.Msg.Secret, nil
}

// firstStart makes the environment "dev" and the contexts, when they are not there.
func (c *cli) firstStart(ctx context.Context, r *devRole) error {
	url, admin, client, err := r.server.local()
	if err != nil {
		return err
	}
	_, err = client.CreateEnvironment(ctx, connect.NewRequest(&pinnacev1.CreateEnvironmentRequest{Name: "dev"}))
	if err != nil && connect.CodeOf(err) != connect.CodeAlreadyExists {
		return fmt.Errorf("create the environment dev: %w", err)
	}
	if !r.context {
		return nil
	}
	entry := userContext{Server: url, Token: admin, Environment: "dev"}
	if path, err := c.configPath(); err == nil {
		if err := saveContext(path, "dev", entry, nil); err != nil {
			return err
		}
	}
	name := c.getenv("SUDO_USER")
	if name == "" || name == "root" {
		return nil
	}
	owner, err := user.Lookup(name)
	if err != nil {
		c.say("no context for %s: %v", name, err)
		return nil
	}
	return saveContext(filepath.Join(owner.HomeDir, ".config", "pinnace", "config.toml"), "dev", entry, owner)
}

// greet says that all is up, and what to do next.
func (c *cli) greet(r *devRole, with *machines) {
	can := with.can
	accel := can.Accelerator
	if can.Accelerator != "kvm" {
		accel += ": " + can.Reason
	}
	_, port, _ := net.SplitHostPort(r.registry.listen)
	c.say("pinnace %s is up (pid %d)", version, os.Getpid())
	url, _, _, err := r.server.local()
	if err != nil { // it has served before
		url = r.server.listen
	}
	c.say("  API       %s", url)
	c.say("  registry  %s", r.registry.listen)
	c.say("  microVMs  %s %s (%s)", can.Driver, can.Version, accel)
	if with.why != "" {
		c.say("            %s", with.why)
	}
	c.say("  data      %s", r.dirs.data)
	c.say("next, in another terminal:")
	c.say("  pinnace init && buildah push --tls-verify=false IMAGE docker://127.0.0.1:%s/app:v1", port)
	c.say("  pinnace deploy --image 127.0.0.1:%s/app:v1", port)
}
