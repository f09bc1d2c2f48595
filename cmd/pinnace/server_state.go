package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// statePlace are the flags that say which server's state a command is about.
type statePlace struct {
	dirs      directories
	database  string
	masterKey string
}

func (s *statePlace) add(cmd *cobra.Command) {
	s.dirs.data = "/var/lib/pinnace"
	cmd.Flags().Var((*dirFlag)(&s.dirs.data), "data-dir", "where the server keeps its data")
	cmd.Flags().StringVar(&s.database, "database", "", databaseHelp)
	cmd.Flags().StringVar(&s.masterKey, "master-key", "", masterKeyHelp)
}

const databaseHelp = "PostgreSQL database with the event log, postgres://… (PINNACE_DATABASE; default: a file in DATA_DIR)"

// place is where the log is.
func (s *statePlace) place(c *cli) (logPlace, error) {
	url := s.database
	if url == "" {
		url = c.getenv("PINNACE_DATABASE")
	}
	if url == "" {
		return logPlace{dir: filepath.Join(s.dirs.data, "server", "log")}, nil
	}
	if !isPostgres(url) {
		return logPlace{}, fail(exitInvalid, "it looks like postgres://user@host/database", "--database is not the URL of a PostgreSQL database")
	}
	return logPlace{url: url}, nil
}

// keys is where the server has its keys.
func (s *statePlace) keys(c *cli) keyPlace {
	return c.keyPlaceOf(filepath.Join(s.dirs.data, "server"), s.masterKey)
}

// key is what the server signs with, or nil when it is not here.
func (s *statePlace) key(c *cli) (ed25519.PrivateKey, error) {
	keys, err := s.keys(c).read()
	if err != nil || keys[keyLog] == "" {
		return nil, err
	}
	return parseLogKey([]byte(keys[keyLog]))
}

func (c *cli) newServerBackup() *cobra.Command {
	var state statePlace
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write the event log to a file, beside a running server or without one",
		Long: `Backup writes all that the server has decided to FILE ("-" is stdout), which "server restore" and
"audit verify --file" read. The chain is verified on the way, and the file ends in a checkpoint that
is signed by the server's key.

What is sealed of secrets goes to FILE.secrets, and the server's own keys, which are sealed for the
master key, to FILE.keys ("-" leaves both out). The master key is in none of them, and nothing can be
opened without it: keep a copy of it where the backups are not.`,
		Example: "  pinnace server backup /backup/pinnace.log\n  pinnace server backup - | zstd > /backup/pinnace.log.zst",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.armFailpoint(); err != nil {
				return err
			}
			place, err := state.place(c)
			if err != nil {
				return err
			}
			key, err := state.key(c)
			if err != nil {
				return err
			}
			check, err := c.exportStored(cmd.Context(), place, key, args[0])
			if err != nil {
				return err
			}
			c.say("backed up %d events, head %s", check.Seq, check.Hash)
			return errors.Join(c.backUpSealed(cmd.Context(), place, args[0]), c.backUpKeys(state.keys(c), args[0]))
		},
	}
	state.add(cmd)
	return cmd
}

// backUpSealed writes what is sealed beside the backup of the log. It comes after: all that an event names was stored
// before it.
func (c *cli) backUpSealed(ctx context.Context, place logPlace, path string) error {
	if path == "-" {
		c.say("sealed secrets are not in it: back up to a file for these")
		return nil
	}
	store, err := place.readSecrets(ctx)
	if err != nil {
		return err
	}
	n, err := writeSealed(ctx, store, sealedBackup(path))
	if err = errors.Join(err, store.Close()); err != nil {
		return err
	}
	if n > 0 {
		c.say("backed up %s to %s; the key that opens them is not in it", plural(n, "sealed secret"), sealedBackup(path))
	}
	return nil
}

// exportStored writes the export of a stored log to a file, whole or not at all; "-" is stdout.
func (c *cli) exportStored(ctx context.Context, place logPlace, key []byte, path string) (check eventlog.Checkpoint, err error) {
	log, err := place.open(ctx)
	if err != nil {
		return check, err
	}
	defer func() { err = errors.Join(err, log.close()) }()
	if check, err = log.sign(ctx, key); err != nil {
		return check, broken(c, err)
	}
	write := func(w io.Writer) error { return eventlog.Export(w, log.id, check, log.events(ctx)) }
	if path == "-" {
		return check, write(c.stdout)
	}
	f, err := durable.CreateTemp(filepath.Dir(path), 0o600)
	if err != nil {
		return check, fail(exitInvalid, "", "%w", err)
	}
	if err := write(f); err != nil {
		return check, errors.Join(err, durable.Discard(f))
	}
	backupWritten.Hit()
	if err := durable.Commit(f, path); err != nil {
		return check, err
	}
	backupNamed.Hit()
	return check, nil
}

func (c *cli) newServerRestore() *cobra.Command {
	var state statePlace
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make the event log from a backup",
		Long: `Restore makes the event log from what "server backup" or "audit export" wrote, where there is none.
All of the file is verified before the log is in its place. The lease gets a new epoch, so that a
server which still runs on the old log cannot write to this one.

What was decided after the backup is lost. Agents and users who have seen later events refuse the
server then, and say so: that is how a restore by mistake is noticed. Where it is meant, they are
told to forget (pinnace audit forget; the agent's message names its file).

Sealed secrets are read from FILE.secrets, when it is there, and the server's keys from FILE.keys, when
DATA_DIR/server/keys has none. The server needs the master key that they were sealed for.`,
		Example: "  pinnace server restore /backup/pinnace.log --data-dir /var/lib/pinnace",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.armFailpoint(); err != nil {
				return err
			}
			place, err := state.place(c)
			if err != nil {
				return err
			}
			held, err := lock(filepath.Join(state.dirs.data, "server"))
			if err != nil {
				return err
			}
			// The log comes last: where one is, nothing is restored again, so that all it rests on has to be there.
			var head eventlog.Head
			err = c.restoreSealed(cmd.Context(), place, args[0])
			if err == nil {
				err = c.restoreKeys(state.keys(c), args[0])
			}
			if err == nil {
				head, err = c.restore(cmd.Context(), place, args[0])
			}
			if err == nil {
				err = eventlog.RemoveDerived(filepath.Join(state.dirs.data, "server", "derived"))
			}
			if err = errors.Join(err, held.Unlock()); err != nil {
				return err
			}
			c.say("restored %d events, head %s", head.Seq, head.Hash)
			return nil
		},
	}
	state.add(cmd)
	return cmd
}

func (c *cli) restoreSealed(ctx context.Context, place logPlace, path string) error {
	store, err := place.secrets(ctx)
	if err != nil {
		return err
	}
	n, err := readSealed(ctx, sealedBackup(path), store)
	if err = errors.Join(err, store.Close()); err != nil {
		return err
	}
	if n > 0 {
		c.say("restored %s", plural(n, "sealed secret"))
	}
	return nil
}

// restore reads the file twice: it is verified to its end before anything is made of it.
func (c *cli) restore(ctx context.Context, place logPlace, path string) (eventlog.Head, error) {
	file, err := os.Open(path)
	if err != nil {
		return eventlog.Head{}, fail(exitNotFound, "pinnace server backup writes one", "%w", err)
	}
	defer file.Close()
	found, err := eventlog.VerifyExport(ctx, file, nil)
	if err != nil {
		return eventlog.Head{}, notExport(path, err)
	}
	restoreVerified.Hit()
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return eventlog.Head{}, err
	}
	return putLog(ctx, place, found.Log, found.Checkpoint, func(yield func(eventlog.Event, error) bool) {
		stopped := errors.New("stopped")
		_, err := eventlog.VerifyExport(ctx, file, func(e *eventlog.Event) error {
			if !yield(*e, nil) {
				return stopped
			}
			return nil
		})
		if err != nil && !errors.Is(err, stopped) {
			yield(eventlog.Event{}, err)
		}
	})
}

// putLog makes a log at a place where there is none. A file is in its place only when it is whole.
func putLog(ctx context.Context, place logPlace, id eventlog.LogID, check eventlog.Checkpoint, events func(func(eventlog.Event, error) bool)) (eventlog.Head, error) {
	at := place
	if place.dir != "" {
		if _, err := os.Stat(place.dir); err == nil {
			return eventlog.Head{}, fail(exitConflict, "stop the server and move the directory away first", "%s: %w", place.dir, eventlog.ErrNotEmpty)
		}
		at.dir = place.dir + ".restoring"
		// What an earlier try left behind was never a log.
		if err := os.RemoveAll(at.dir); err != nil {
			return eventlog.Head{}, err
		}
	}
	engine := at.create(id, newEpoch())
	head, err := eventlog.Fill(ctx, engine, id, events)
	restoreFilled.Hit()
	if err == nil && check.Seq > 0 {
		err = engine.SaveCheckpoint(ctx, check)
	}
	restoreSigned.Hit()
	if err = errors.Join(err, engine.Close()); err != nil {
		if errors.Is(err, eventlog.ErrNotEmpty) {
			return head, fail(exitConflict, "use another database, or drop the tables that begin with pinnace_", "%s: %w", place, err)
		}
		return head, fmt.Errorf("%s: %w", place, err)
	}
	if place.dir == "" {
		return head, nil
	}
	if err := os.Rename(at.dir, place.dir); err != nil {
		return head, err
	}
	restorePlaced.Hit()
	return head, durable.SyncDir(filepath.Dir(place.dir))
}

func (c *cli) newServerMigrateState() *cobra.Command {
	return &cobra.Command{
		Use:   "migrate-state FROM TO",
		Short: "Copy the event log from one engine to another",
		Long: `Migrate-state copies the event log of a server that does not run, verifying the chain on the way and
again in its new place. The log stays the same one: heads, keys and positions that somebody has seen
are still good. FROM stays as it is; do not start a server on it again.

A place is sqlite:DIR, where DIR is DATA_DIR/server/log, or postgres://user@host/database.`,
		Example: "  pinnace server migrate-state sqlite:/var/lib/pinnace/server/log postgres://pinnace@db/pinnace",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := parsePlace(args[0])
			if err != nil {
				return err
			}
			to, err := parsePlace(args[1])
			if err != nil {
				return err
			}
			head, err := migrate(cmd.Context(), from, to)
			if err != nil {
				return broken(c, err)
			}
			c.say("copied %d events, head %s", head.Seq, head.Hash)
			return nil
		},
	}
}

func migrate(ctx context.Context, from, to logPlace) (head eventlog.Head, err error) {
	if from.dir != "" {
		// Opening an engine makes what is not there.
		if _, err := os.Stat(from.dir); err != nil {
			return head, fail(exitNotFound, "", "%w", err)
		}
	}
	source := from.engine()
	info, err := source.Open(ctx)
	if err == nil {
		// Nobody else may append while it is read.
		if _, leadErr := source.Lead(ctx); leadErr != nil {
			err = errors.Join(leadErr, source.Close())
		}
	}
	if errors.Is(err, durable.ErrLocked) || errors.Is(err, eventlog.ErrHeld) {
		return head, fail(exitConflict, "stop the server first", "%w", err)
	}
	if err != nil {
		return head, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	check, err := source.LastCheckpoint(ctx)
	if err != nil {
		return head, err
	}
	if head, err = putLog(ctx, to, info.ID, check, eventlog.Stored(ctx, source)); err != nil {
		return head, err
	}
	return head, migrateSealed(ctx, from, to)
}

// migrateSealed copies what is sealed of secrets after the log that names it.
func migrateSealed(ctx context.Context, from, to logPlace) error {
	source, err := from.readSecrets(ctx)
	if err != nil {
		return err
	}
	target, err := to.secrets(ctx)
	if err != nil {
		return errors.Join(err, source.Close())
	}
	_, err = copySealed(ctx, source, target)
	return errors.Join(err, target.Close(), source.Close())
}
