package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// The configuration in force lies beside the control socket, so that a proxy that was killed serves again as
// soon as it is started, whether the agent is there or not. A proxy that is told to shut down leaves none.
func (o Options) configPath() string { return o.Socket + ".config" }

// keep returns when c would outlive the process.
func (o Options) keep(c *Config) error {
	b, err := json.Marshal(c)
	if err == nil {
		err = durable.WriteFile(o.configPath(), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep the configuration: %w", err)
	}
	return nil
}

// recall gives what an earlier process has kept, or nil.
func (o Options) recall() (*Config, error) {
	f, err := os.Open(o.configPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("recall the last configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, MaxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("recall the last configuration: %w", err)
	}
	c, err := ParseConfig(b)
	if err != nil {
		return nil, fmt.Errorf("recall the last configuration from %s: %w", o.configPath(), err)
	}
	return c, nil
}

func (o Options) forget() error {
	err := os.Remove(o.configPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
