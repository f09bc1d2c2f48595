package main

import (
	"cmp"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/identity"
	"github.com/pinnacehq/pinnace/internal/keyring"
	"github.com/pinnacehq/pinnace/internal/secret"
)

// The keys of a server, by their names among the sealed ones.
const (
	keyCA      = "ca"      // of the certificate authority, with its certificate
	keyLog     = "log"     // that checkpoints of the event log are signed with
	keySecrets = "secrets" // that secrets are sealed for
)

// keyNames are all of them.
var keyNames = []string{keyCA, keyLog, keySecrets}

// keyMakers make a key that is not there yet.
var keyMakers = map[string]func() (string, error){
	keyCA:  func() (string, error) { return identity.GenerateAuthority(time.Now()) },
	keyLog: newLogKey,
	keySecrets: func() (string, error) {
		text, err := secret.GenerateKey()
		return string(text), err
	},
}

// checkKey says why a text is not a key of its name, and otherwise what others know the key by.
func checkKey(name, text string) (known string, err error) {
	switch name {
	case keyCA:
		a, err := identity.ParseAuthority([]byte(text))
		if err != nil {
			return "", err
		}
		return "sha256:" + a.Fingerprint().String(), nil
	case keyLog:
		key, err := parseLogKey([]byte(text))
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%x", key.Public()), nil
	case keySecrets:
		keys, err := secret.ParseKeys([]byte(text))
		if err != nil {
			return "", err
		}
		return keys.Recipient(), nil
	}
	return "", fmt.Errorf("there is no key named %q", name)
}

const (
	masterKeyHelp = "file with the master key that opens the server's own keys (PINNACE_MASTER_KEY; default: the systemd credential pinnace.master-key, or DATA_DIR/server/master.key, made at the first start)"
	// credentialName is the file of the master key in the directory that systemd has for a service's credentials.
	credentialName = "pinnace.master-key"
)

// keyPlace is where a server has its keys, and where their master key is.
type keyPlace struct {
	dir    string // of the keys
	master string // file
	named  bool   // the master key was named by somebody, and is not made for want of one
	shared bool   // a group may read it
}

// keyPlaceOf looks for the master key of a server whose directory is dir: where the flag says, the environment or systemd.
func (c *cli) keyPlaceOf(dir, flag string) keyPlace {
	p := usualKeys(dir)
	if path := cmp.Or(flag, c.getenv("PINNACE_MASTER_KEY")); path != "" {
		p.master, p.named = path, true
		return p
	}
	if given := c.getenv("CREDENTIALS_DIRECTORY"); given != "" {
		path := filepath.Join(given, credentialName)
		if _, err := os.Stat(path); err == nil {
			p.master, p.named, p.shared = path, true, true
		}
	}
	return p
}

// usualKeys is where keys are when nobody has said otherwise.
func usualKeys(dir string) keyPlace {
	return keyPlace{dir: filepath.Join(dir, "keys"), master: filepath.Join(dir, "master.key")}
}

// sealed tells whether keys are sealed here.
func (p keyPlace) sealed() bool {
	_, err := os.Stat(keyring.Path(p.dir))
	return err == nil
}

// open reads the master key, which is made when nothing rests on it yet and nobody has said where it is.
func (p keyPlace) open() (*keyring.Master, error) {
	master, err := keyring.ReadMaster(p.master, p.shared)
	if errors.Is(err, fs.ErrNotExist) {
		switch {
		case p.sealed():
			return nil, fail(exitNotFound, "put the master key there (a copy of it should be where your backups are not), or say where it is: --master-key, PINNACE_MASTER_KEY or the systemd credential "+credentialName,
				"the server's keys in %s are sealed, and the master key that opens them is not at %s", keyring.Path(p.dir), p.master)
		case p.named:
			return nil, fail(exitNotFound, "pinnace server keys create --master-key FILE makes one", "%w", err)
		}
		master, err = keyring.MakeMaster(p.master)
	}
	return master, keyFailure(err)
}

// load gives the keys with those names; see keyring.Load.
func (p keyPlace) load(names ...string) (keyring.Keys, error) {
	master, err := p.open()
	if err != nil {
		return nil, err
	}
	makers := map[string]func() (string, error){}
	for _, name := range names {
		makers[name] = keyMakers[name]
	}
	keys, err := keyring.Load(p.dir, master, makers)
	if err != nil {
		return nil, keyFailure(err)
	}
	for _, name := range names {
		if _, err := checkKey(name, keys[name]); err != nil {
			return nil, fail(exitInvalid, "restore the directory from a backup, or replace the key: pinnace server keys replace "+name, "the server's key %s, in %s: %w", name, p.dir, err)
		}
	}
	return keys, nil
}

// read is load beside a running server: nothing is made or moved. Keys that are not there, or that whoever runs this may
// not read, are left out.
func (p keyPlace) read() (keyring.Keys, error) {
	master, err := keyring.ReadMaster(p.master, p.shared)
	var keys keyring.Keys
	if err == nil {
		keys, err = keyring.Read(p.dir, master)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return nil, keyFailure(err)
	}
	if keys != nil {
		return keys, nil
	}
	keys = keyring.Keys{}
	for _, name := range keyNames { // of a server that has not sealed them yet
		text, err := keyring.ReadPlain(p.dir, name)
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return nil, keyFailure(err)
		}
		if text != "" {
			keys[name] = text
		}
	}
	return keys, nil
}

// keyFailure says what to do about an error of package keyring.
func keyFailure(err error) error {
	var twice *keyring.PlainError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &twice):
		return fail(exitConflict, fmt.Sprintf("to use it: pinnace server keys replace %s --from %s; to go on with the sealed one, remove the file", twice.Name, twice.Path), "%w", err)
	case errors.Is(err, secret.ErrKey):
		return fail(exitInvalid, "give the server the master key that they were sealed for: --master-key, PINNACE_MASTER_KEY or the systemd credential "+credentialName, "%w", err)
	case errors.Is(err, keyring.ErrDamaged):
		return fail(exitInvalid, "put a copy of the file in its place: a backup of the server has the sealed keys, and you the master key", "%w", err)
	case errors.Is(err, keyring.ErrOpen):
		return fail(exitInvalid, "keys are for their owner alone; if others have read it, make new ones (pinnace server keys rotate)", "%w", err)
	case errors.Is(err, keyring.ErrNewer), errors.Is(err, durable.ErrLocked), errors.Is(err, fs.ErrExist):
		return fail(exitConflict, "", "%w", err)
	case errors.Is(err, fs.ErrNotExist):
		return fail(exitNotFound, "", "%w", err)
	}
	return err
}

// newLogKey makes a key that checkpoints are signed with.
func newLogKey() (string, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// parseLogKey reads a key that checkpoints are signed with.
func parseLogKey(text []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("want a PRIVATE KEY, PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signing, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("it is a key of another kind than ed25519")
	}
	return signing, nil
}
