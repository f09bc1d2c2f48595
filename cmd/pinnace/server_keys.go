package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/keyring"
)

func (c *cli) newServerKeys() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make, check and change the server's own keys",
		Long: `A server has three keys: "ca" signs the certificates of hosts and servers, "log" signs checkpoints of the
event log, and secrets are sealed for "secrets". They are in one file, DATA_DIR/server/keys/sealed.age,
which is sealed for a master key: a file of age, named by --master-key or PINNACE_MASTER_KEY, or handed
over by systemd (LoadCredential=pinnace.master-key:PATH), or DATA_DIR/server/master.key.

The master key belongs where the data, the database and the backups are not, and in a second place
besides: nothing opens without it. These commands work beside a running server, which reads its keys
when it starts.`,
	}
	cmd.AddCommand(c.newServerKeysCreate(), c.newServerKeysVerify(), c.newServerKeysRotate(), c.newServerKeysReplace(), c.newServerKeysExport())
	return cmd
}

// keyFlags are the flags that say whose keys a command is about.
type keyFlags struct {
	dirs      directories
	masterKey string
}

func (f *keyFlags) add(cmd *cobra.Command) {
	f.dirs.data = "/var/lib/pinnace"
	cmd.Flags().Var((*dirFlag)(&f.dirs.data), "data-dir", "where the server keeps its data")
	cmd.Flags().StringVar(&f.masterKey, "master-key", "", masterKeyHelp)
}

func (f *keyFlags) place(c *cli) keyPlace {
	return c.keyPlaceOf(filepath.Join(f.dirs.data, "server"), f.masterKey)
}

// held opens the keys that are sealed at a place, and nothing else.
func (p keyPlace) held() (*keyring.Master, keyring.Keys, error) {
	if !p.sealed() {
		return nil, nil, fail(exitNotFound, "a server makes its keys when it starts, and pinnace server keys create does it without", "no keys are sealed in %s", p.dir)
	}
	master, err := p.open()
	if err != nil {
		return nil, nil, err
	}
	keys, err := keyring.Read(p.dir, master)
	return master, keys, keyFailure(err)
}

func (c *cli) newServerKeysCreate() *cobra.Command {
	var flags keyFlags
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make the master key and the server's keys, before a server starts",
		Long: `Create makes a master key where there is none, and in DATA_DIR/server/keys all keys that are missing,
sealed for it. What is there stays. A server does the same at its first start, but never makes a master
key that it was told the place of: a path with a mistake in it would give it new keys.`,
		Example: "  pinnace server keys create --master-key /etc/pinnace/master.key",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			place := flags.place(c)
			if _, err := os.Stat(place.master); errors.Is(err, fs.ErrNotExist) && !place.sealed() {
				if _, err := keyring.MakeMaster(place.master); err != nil {
					return keyFailure(err)
				}
				c.say("made the master key %s: keep a copy of it elsewhere", place.master)
			}
			if _, err := place.load(keyNames...); err != nil {
				return err
			}
			return c.showKeys(place)
		},
	}
	flags.add(cmd)
	return cmd
}

func (c *cli) newServerKeysVerify() *cobra.Command {
	var flags keyFlags
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that the master key opens the server's keys, and show what they are known by",
		Long: `Verify opens the sealed keys and reads each of them. It shows public halves only: the fingerprint of the
authority that tokens carry, the key that checkpoints are signed by (audit verify --key), and the one
that secrets are sealed for. With --master-key it tells whether a copy of the master key is a good one.`,
		Example: "  pinnace server keys verify\n  pinnace server keys verify --master-key /mnt/safe/master.key",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return c.showKeys(flags.place(c)) },
	}
	flags.add(cmd)
	return cmd
}

// shownKeys are the keys of a server as the command line tells of them.
type shownKeys struct {
	MasterKey string     `json:"master_key"`
	SealedFor string     `json:"sealed_for"`
	Sealed    string     `json:"sealed"`
	Keys      []shownKey `json:"keys"`
}

type shownKey struct {
	Name    string `json:"name"`
	KnownBy string `json:"known_by"`
}

func (c *cli) showKeys(place keyPlace) error {
	master, keys, err := place.held()
	if err != nil {
		return err
	}
	out := shownKeys{MasterKey: master.Path, SealedFor: master.Recipient(), Sealed: keyring.Path(place.dir)}
	for _, name := range keyNames {
		if keys[name] == "" {
			continue // an operator's own is used instead
		}
		known, err := checkKey(name, keys[name])
		if err != nil {
			return fail(exitInvalid, "pinnace server keys replace "+name, "the server's key %s: %w", name, err)
		}
		out.Keys = append(out.Keys, shownKey{name, known})
	}
	if c.json {
		return c.printJSON(out)
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tKNOWN BY")
	for _, k := range out.Keys {
		fmt.Fprintf(w, "%s\t%s\n", k.Name, k.KnownBy)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	c.say("%s is sealed for %s, which %s opens", out.Sealed, out.SealedFor, out.MasterKey)
	if n := master.Count(); n > 1 {
		c.say("the file of the master key has %d keys: a rotation was interrupted, or one was added by hand; pinnace server keys rotate leaves one", n)
	}
	return nil
}

func (c *cli) newServerKeysRotate() *cobra.Command {
	var flags keyFlags
	var to string
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Seal the server's keys for a new master key",
		Long: `Rotate makes a new master key in the place of the old one and seals the server's keys for it. Whenever it
is interrupted, the file of the master key opens them: it has both master keys for as long as either may
be needed, and the next rotation takes the old one out.

With --to the new master key is another file, which is made when it is not there, and the old one stays
as it is: for one that cannot be written where it is, such as a systemd credential. The server has to be
started with the new one from then on.

The keys themselves stay the same, and so does everything that was signed and sealed with them. Other
servers of the same database have files of their own: give them the new ones, both. The old master key
still opens old backups.`,
		Example: "  pinnace server keys rotate\n  pinnace server keys rotate --to /etc/pinnace/master-2.key",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			place := flags.place(c)
			old, _, err := place.held()
			if err != nil {
				return err
			}
			if to == "" {
				if place.shared {
					return fail(exitInvalid, "write it to a file with --to, and make that the credential", "the master key is a credential of systemd, which cannot be written")
				}
				if _, err := keyring.Rotate(place.dir, old); err != nil {
					return keyFailure(err)
				}
				return c.showKeys(place)
			}
			next, err := keyring.ReadMaster(to, false)
			if errors.Is(err, fs.ErrNotExist) {
				next, err = keyring.MakeMaster(to)
			}
			if err == nil {
				err = keyring.Reseal(place.dir, old, next)
			}
			if err != nil {
				return keyFailure(err)
			}
			place.master, place.shared = to, false
			return c.showKeys(place)
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&to, "to", "", "file with the new master key, instead of that of the old one")
	return cmd
}

func (c *cli) newServerKeysReplace() *cobra.Command {
	var flags keyFlags
	var from string
	cmd := &cobra.Command{
		Use:   "replace ca|log|secrets",
		Short: "Put a key of the server in the place of one that has leaked, or is another server's",
		Long: `Replace makes a new key, or takes that of --from, and the server uses it from its next start on.

ca       Every host has to join again with a token that names it, and everybody needs a new token or context.
log      Checkpoints are signed by the new key. What was signed before stays signed by the old one.
secrets  The new key seals, and those before it still open what they sealed. Put each bundle once more and
         revoke the old versions; then leave the new key alone in a file of export, and replace --from that.

With --from the key is what the file has, and nothing else.`,
		Example:   "  pinnace server keys replace secrets\n  pinnace server keys replace ca --from /mnt/first-server/ca.key",
		Args:      cobra.ExactArgs(1),
		ValidArgs: keyNames,
		RunE: func(_ *cobra.Command, args []string) error {
			name := args[0]
			if !slices.Contains(keyNames, name) {
				return fail(exitInvalid, "they are ca, log and secrets", "a server has no key named %q", name)
			}
			place := flags.place(c)
			master, keys, err := place.held()
			if err != nil {
				return err
			}
			text, err := replacement(name, from, keys[name])
			if err != nil {
				return err
			}
			if err := keyring.Replace(place.dir, master, name, text); err != nil {
				return keyFailure(err)
			}
			c.say("the server uses it from its next start on")
			return c.showKeys(place)
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&from, "from", "", "file with the key, in the clear")
	return cmd
}

// replacement is what is put in the place of a key.
func replacement(name, from, old string) (string, error) {
	if from == "" {
		text, err := keyMakers[name]()
		if err == nil && name == keySecrets {
			text += old // the first one seals, all of them open
		}
		return text, err
	}
	text, err := readSmall(from)
	if err != nil {
		return "", fail(inputStatus(err), "", "--from: %w", err)
	}
	if _, err := checkKey(name, string(text)); err != nil {
		return "", fail(exitInvalid, "", "%s is no key %s: %w", from, name, err)
	}
	return string(text), nil
}

func (c *cli) newServerKeysExport() *cobra.Command {
	var flags keyFlags
	cmd := &cobra.Command{
		Use:   "export DIRECTORY",
		Short: "Write the server's keys in the clear",
		Long: `Export writes ca.key, log.key and secrets.key, which nobody but their owner can read, into a directory.
It is for a copy on paper, for another server's --ca-file, and for going back to a version of the server
that knows of no master key: that one wants them in DATA_DIR/server/keys. Remove the files when they are
not needed any more; a server that seals its keys seals those in its directory again when it starts.`,
		Example: "  pinnace server keys export /dev/shm/keys\n  pinnace server keys export /var/lib/pinnace/server/keys",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			_, keys, err := flags.place(c).held()
			if err != nil {
				return err
			}
			if err := keyring.Export(args[0], keys); err != nil {
				return keyFailure(err)
			}
			c.say("wrote %s to %s, in the clear", plural(len(keys), "key"), args[0])
			return nil
		},
	}
	flags.add(cmd)
	return cmd
}

// keysBackup is where the sealed keys of a backup are.
func keysBackup(path string) string { return path + ".keys" }

// backUpKeys copies the sealed keys beside the backup of a log. Whoever may not read them backs up the rest.
func (c *cli) backUpKeys(place keyPlace, path string) error {
	if path == "-" {
		return nil
	}
	sealed, err := keyring.Copy(place.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		c.say("the server's keys are not in the backup: none are sealed in %s that this user can read", place.dir)
		if err := os.Remove(keysBackup(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err // what an earlier backup of the same name left would be taken for this one's
		}
		return nil
	case err != nil:
		return keyFailure(err)
	}
	if err := durable.WriteFile(keysBackup(path), sealed, 0o600); err != nil {
		return fail(exitInvalid, "", "%w", err)
	}
	c.say("backed up the server's keys, sealed, to %s; the master key that opens them is not in it", keysBackup(path))
	return nil
}

// restoreKeys puts the sealed keys of a backup where the server has none.
func (c *cli) restoreKeys(place keyPlace, path string) error {
	sealed, err := readSmall(keysBackup(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	restored, err := keyring.Restore(place.dir, sealed, keyNames)
	switch {
	case err != nil:
		return keyFailure(err)
	case restored:
		c.say("restored the server's keys, sealed; the server needs their master key at %s", place.master)
	default:
		c.say("the server has keys in %s, which stay as they are", place.dir)
	}
	return nil
}
