package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/pelletier/go-toml/v2"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// userConfig is ~/.config/pinnace/config.toml: the servers that a user knows.
type userConfig struct {
	Current  string                 `toml:"current"`
	Contexts map[string]userContext `toml:"contexts"`
}

// userContext is one server with the token for it.
type userContext struct {
	Server      string `toml:"server"`
	Token       string `toml:"token"`
	Environment string `toml:"environment,omitempty"`
	// CA is what the server is known by when the token does not say it: a fingerprint, or the path of a file.
	CA string `toml:"ca,omitempty"`
}

// configPath is where the configuration of the user with that home directory is.
func (c *cli) configPath() (string, error) {
	if dir := c.getenv("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "pinnace", "config.toml"), nil
	}
	home := c.getenv("HOME")
	if home == "" {
		return "", errors.New("HOME is not set, so there is no place for contexts")
	}
	return filepath.Join(home, ".config", "pinnace", "config.toml"), nil
}

// readConfig reads the file at path; one that is not there is empty.
func readConfig(path string) (userConfig, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return userConfig{}, nil
	}
	if err != nil {
		return userConfig{}, err
	}
	var cfg userConfig
	dec := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil {
		return userConfig{}, fail(exitInvalid, "mend it, or delete it and make the contexts again", "read %s: %w", path, err)
	}
	return cfg, nil
}

// currentContext is the context in force, or the zero one when none is.
func (c *cli) currentContext() (userContext, error) {
	path, err := c.configPath()
	if err != nil {
		return userContext{}, nil //nolint:nilerr // Without a home there are no contexts, which is no error here.
	}
	cfg, err := readConfig(path)
	if err != nil || cfg.Current == "" {
		return userContext{}, err
	}
	current, ok := cfg.Contexts[cfg.Current]
	if !ok {
		return userContext{}, fail(exitInvalid, "", "%s: the current context %q is not in the file", path, cfg.Current)
	}
	return current, nil
}

// saveContext adds a context to the file at path and makes it the current one. The directory and the file
// belong to owner afterwards, when that is not nil.
func saveContext(path, name string, entry userContext, owner *user.User) error {
	cfg, err := readConfig(path)
	if err != nil {
		return err
	}
	if cfg.Contexts == nil {
		cfg.Contexts = map[string]userContext{}
	}
	if cfg.Current == name && cfg.Contexts[name] == entry {
		return nil
	}
	cfg.Current = name
	cfg.Contexts[name] = entry
	return writeConfig(path, cfg, owner)
}

// writeConfig replaces the file at path. The directory and the file belong to owner afterwards, when that is not nil.
func writeConfig(path string, cfg userConfig, owner *user.User) error {
	b, err := toml.Marshal(cfg)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(path, b, 0o600); err != nil {
		return err
	}
	if owner == nil {
		return nil
	}
	uid, uidErr := strconv.Atoi(owner.Uid)
	gid, gidErr := strconv.Atoi(owner.Gid)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return fmt.Errorf("owner of %s: %w", path, err)
	}
	return errors.Join(os.Lchown(dir, uid, gid), os.Lchown(path, uid, gid))
}
