package main

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/identity"
	"github.com/pinnacehq/pinnace/internal/secret"
)

// serverKeys are what a server signs and seals with.
type serverKeys struct {
	authority *identity.Authority
	log       ed25519.PrivateKey
	secrets   *secret.Keys
}

// loadKeys reads the keys, or makes them, once. Those that an operator has named are read where they are.
func (r *serverRole) loadKeys() (_ *serverKeys, err error) {
	r.loading.Lock()
	defer r.loading.Unlock()
	if r.loaded != nil {
		return r.loaded, nil
	}
	if r.keys.dir == "" {
		r.keys = usualKeys(r.dir)
	}
	names := []string{keyLog}
	if r.secure.authority == "" {
		names = append(names, keyCA)
	}
	if r.secretsKey == "" {
		names = append(names, keySecrets)
	}
	own, err := r.keys.load(names...)
	if err != nil {
		return nil, err
	}
	keys := &serverKeys{}
	if keys.log, err = parseLogKey([]byte(own[keyLog])); err != nil {
		return nil, err
	}
	if r.secretsKey != "" {
		keys.secrets, err = secretKeys(r.secretsKey)
	} else {
		keys.secrets, err = secret.ParseKeys([]byte(own[keySecrets]))
	}
	if err != nil {
		return nil, err
	}
	if keys.authority, err = r.authority(own[keyCA]); err != nil {
		return nil, err
	}
	r.loaded = keys
	return keys, nil
}

// authority is the one that signs the certificates of hosts. Its own certificate is put beside the keys, for others.
func (r *serverRole) authority(own string) (*identity.Authority, error) {
	if r.secure.authority != "" {
		a, err := identity.LoadAuthority(r.secure.authority)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fail(exitInvalid, "export it from the first server: pinnace server keys export DIRECTORY", "--ca-file: %w", err)
		}
		return a, err
	}
	a, err := identity.ParseAuthority([]byte(own))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(r.keys.dir, "ca.crt")
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, a.PEM()) {
		return a, nil
	}
	return a, durable.WriteFile(path, a.PEM(), 0o644)
}
