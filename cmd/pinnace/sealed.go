package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/identity/lastuse"
	lastusepostgres "github.com/pinnacehq/pinnace/internal/identity/lastuse/postgres"
	"github.com/pinnacehq/pinnace/internal/secret"
	secretpostgres "github.com/pinnacehq/pinnace/internal/secret/postgres"
)

// secretsKeyHelp is that of --secrets-key.
const secretsKeyHelp = "file with the keys of age that secrets are sealed with, instead of the server's own (PINNACE_SECRETS_KEY)"

// secretKeys reads the keys of age that an operator has named. They have to be there, or a mistyped path would seal
// secrets with a key that nobody expects.
func secretKeys(path string) (*secret.Keys, error) {
	text, err := readSmall(path)
	if err != nil {
		return nil, fail(inputStatus(err), "age-keygen -o FILE makes one", "the key of secrets: %w", err)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fail(exitInvalid, "chmod 600 "+path, "the key of secrets, %s, can be read by others than its owner", path)
	}
	keys, err := secret.ParseKeys(text)
	if err != nil {
		return nil, fail(exitInvalid, "age-keygen -o FILE makes one", "the key of secrets, %s: %w", path, err)
	}
	return keys, nil
}

// secretsDir is where sealed secrets are beside a log in a directory.
func (p logPlace) secretsDir() string { return filepath.Join(filepath.Dir(p.dir), "secrets") }

// secrets opens the store of sealed secrets that belongs to the place of a log.
func (p logPlace) secrets(ctx context.Context) (secret.Store, error) {
	if p.url == "" {
		return secret.OpenDir(p.secretsDir())
	}
	s, err := secretpostgres.Open(ctx, p.url)
	if err != nil {
		return nil, fail(exitUnreachable, "", "%w", err)
	}
	return s, nil
}

// tokenUses opens what remembers when tokens were used last, for a server whose directory is dir.
func (p logPlace) tokenUses(ctx context.Context, dir string) (lastuse.Store, error) {
	if p.url == "" {
		return lastuse.InFile(filepath.Join(dir, "uses", "tokens.json")), nil
	}
	s, err := lastusepostgres.Open(ctx, p.url)
	if err != nil {
		return nil, fail(exitUnreachable, "", "%w", err)
	}
	return s, nil
}

// readSecrets is secrets beside a running server: of a directory nothing is changed.
func (p logPlace) readSecrets(ctx context.Context) (secret.Store, error) {
	if p.url == "" {
		return secret.ReadDir(p.secretsDir()), nil
	}
	return p.secrets(ctx)
}

// sealedBackup is where the sealed secrets of a backup are.
func sealedBackup(path string) string { return path + ".secrets" }

// writeSealed writes all that a store has into a tar, whole or not at all, and tells how many there are. Nothing of it can
// be read without the server's key, which is not in it. Without any there is no file.
func writeSealed(ctx context.Context, store secret.Store, path string) (n int, err error) {
	all, err := store.List(ctx)
	if err != nil {
		return 0, err
	}
	if len(all) == 0 {
		// What an earlier backup of the same name left would be taken for this one's.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		return 0, nil
	}
	f, err := durable.CreateTemp(filepath.Dir(path), 0o600)
	if err != nil {
		return 0, fail(exitInvalid, "", "%w", err)
	}
	w := tar.NewWriter(f)
	for _, e := range all {
		sealed, err := store.Get(ctx, e.Digest)
		if errors.Is(err, secret.ErrNotFound) {
			continue // revoked in the meantime
		}
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(e.Digest, "sha256:") + ".age", Mode: 0o600, Size: int64(len(sealed)), ModTime: e.At})
		}
		if err == nil {
			_, err = w.Write(sealed)
		}
		if err != nil {
			return n, errors.Join(fmt.Errorf("back up the sealed secrets: %w", err), durable.Discard(f))
		}
		n++
	}
	if err := w.Close(); err != nil {
		return n, errors.Join(err, durable.Discard(f))
	}
	return n, durable.Commit(f, path)
}

// readSealed puts what writeSealed wrote into a store. Each thing is checked against its name; a file that is not there
// has none.
func readSealed(ctx context.Context, path string, store secret.Store) (n int, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, fail(exitInvalid, "it is not what server backup wrote, or not all of it", "%s: %w", path, err)
		}
		var sealed bytes.Buffer
		if _, err := io.Copy(&sealed, io.LimitReader(r, secret.MaxSealed+1)); err != nil {
			return n, fail(exitInvalid, "it is not what server backup wrote, or not all of it", "%s: %w", path, err)
		}
		if err := secret.Verify("sha256:"+strings.TrimSuffix(h.Name, ".age"), sealed.Bytes()); err != nil {
			return n, fail(exitInvalid, "it is not what server backup wrote", "%s: %w", path, err)
		}
		if _, err := store.Put(ctx, sealed.Bytes()); err != nil {
			return n, err
		}
	}
}

// copySealed copies all that one store has into another.
func copySealed(ctx context.Context, from, to secret.Store) (n int, err error) {
	all, err := from.List(ctx)
	if err != nil {
		return 0, err
	}
	for _, e := range all {
		sealed, err := from.Get(ctx, e.Digest)
		if err == nil {
			_, err = to.Put(ctx, sealed)
		}
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
