package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/pinnacehq/pinnace/internal/server"
)

// serverRole is the control plane of one machine.
type serverRole struct {
	dir                 string
	listen, agentListen string
	secure              tlsFlags
	database            string
	secretsKey          string
	keys                keyPlace // zero: where they usually are
	loading             sync.Mutex
	loaded              *serverKeys // guarded by loading; once they were
	log                 *slog.Logger
}

func (c *cli) newServer() *cobra.Command {
	var dirs directories
	var level logFlag
	role := serverRole{}
	var masterKey string
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the control plane",
		Long: `Server runs the control plane: the event log, the scheduler and the API. At the first
start it makes an admin token and its keys, in DATA_DIR/server/keys.

The API is served with TLS, and without only on loopback. The certificate is the server's own, which
clients know by the fingerprint in their token, or an operator's (--tls-cert, --tls-key). Agents
always use TLS, each with the certificate of its host.

The event log is a file in DATA_DIR, or in a PostgreSQL database (--database; the password is best
kept in PGPASSFILE). Several servers may use one database: one of them leads, the others answer
questions, and one of those leads when it is gone.

The server's own keys (of the authority, of the log's signatures and of secrets) are in no database.
They lie in DATA_DIR/server/keys, sealed for a master key: the file of --master-key, a systemd
credential, or DATA_DIR/server/master.key. See pinnace server keys --help.`,
		Example: "  pinnace server\n  pinnace server --listen 10.0.0.1:7400 --agent-listen 10.0.0.1:7401\n  pinnace server --database postgres://pinnace@db/pinnace",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.armFailpoint(); err != nil {
				return err
			}
			if role.database == "" {
				role.database = c.getenv("PINNACE_DATABASE")
			}
			if role.secretsKey == "" {
				role.secretsKey = c.getenv("PINNACE_SECRETS_KEY")
			}
			role.dir = filepath.Join(dirs.data, "server")
			role.keys = c.keyPlaceOf(role.dir, masterKey)
			role.log = c.logger("server", level.level)
			held, err := lock(role.dir)
			if err != nil {
				return err
			}
			return errors.Join(role.run(cmd.Context(), nil), held.Unlock())
		},
	}
	dirs.add(cmd)
	level.add(cmd, slog.LevelInfo)
	role.add(cmd)
	cmd.Flags().StringVar(&role.secretsKey, "secrets-key", "", secretsKeyHelp)
	cmd.Flags().StringVar(&masterKey, "master-key", "", masterKeyHelp)
	cmd.Flags().StringVar(&role.database, "database", "", databaseHelp)
	cmd.AddCommand(c.newServerBackup(), c.newServerRestore(), c.newServerMigrateState(), c.newServerKeys())
	return cmd
}

func (r *serverRole) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.listen, "listen", "127.0.0.1:7400", "where the API listens")
	cmd.Flags().StringVar(&r.agentListen, "agent-listen", "127.0.0.1:7401", "where agents connect to")
	r.secure.add(cmd)
}

func (r *serverRole) adminToken() (string, error) {
	return ensureToken(filepath.Join(r.dir, "keys", "admin.token"))
}

// run serves until ctx is done. ready, when not nil, is called once both ports answer.
func (r *serverRole) run(ctx context.Context, ready func()) error {
	admin, err := r.adminToken()
	if err != nil {
		return err
	}
	keys, err := r.loadKeys()
	if err != nil {
		return err
	}
	apiTLS, pin, err := r.secure.of(r.listen, keys.authority)
	if err != nil {
		return err
	}
	api, err := listen(r.listen, "the API")
	if err != nil {
		return err
	}
	defer func() { _ = api.Close() }() // again after serveHTTP has: it is for the ways out before
	agents, err := listen(r.agentListen, "the server")
	if err != nil {
		return err
	}
	defer func() { _ = agents.Close() }()
	place := logPlace{dir: filepath.Join(r.dir, "log")}
	if r.database != "" {
		if !isPostgres(r.database) {
			return fail(exitInvalid, "it looks like postgres://user@host/database", "--database is not the URL of a PostgreSQL database")
		}
		place = logPlace{url: r.database}
	}
	store, err := place.secrets(ctx)
	if err != nil {
		return err
	}
	uses, err := place.tokenUses(ctx, r.dir)
	if err != nil {
		return errors.Join(err, store.Close())
	}
	s, err := server.New(ctx, server.Options{
		Keys: keys.secrets, Secrets: store, TokenUses: uses,
		Engine: place.engine(), Follow: place.url != "", LogKey: keys.log, DerivedDir: filepath.Join(r.dir, "derived"),
		Logger: r.log, Version: version, AdminToken: admin, Authority: keys.authority, APIPin: pin,
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Run(ctx) })
	// A caller that is gone must not keep its command, and neither must an agent.
	group.Go(func() error { return serveHTTP(ctx, api, s.Handler(), lively(&http.HTTP2Config{}), apiTLS, r.log) })
	group.Go(func() error {
		return serveHTTP(ctx, agents, s.AgentHandler(), lively(server.AgentHTTP2()), keys.authority.ServerTLS(r.secure.allNames(r.agentListen), time.Now), r.log)
	})
	r.log.Info("the server is up", "api", urlScheme(apiTLS)+api.Addr().String(), "agents", agents.Addr().String())
	if ready != nil {
		ready()
	}
	return errors.Join(group.Wait(), s.Close())
}
