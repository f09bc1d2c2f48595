package image

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// Config is what an image says about the process to run.
type Config struct {
	Architecture string
	OS           string

	Entrypoint []string
	Cmd        []string
	Env        []string // "KEY=value"
	WorkingDir string
	User       string
	StopSignal string

	Ignored Ignored
}

// Ignored is what an image asks for and Pinnace does not do: policy comes from the manifest of the
// release, never from the image. It is kept so that people can be told.
type Ignored struct {
	ExposedPorts []string // sorted
	Volumes      []string // sorted
	Labels       []string // keys, sorted
	Healthcheck  bool
	Shell        bool
	OnBuild      bool
}

// ParseConfig reads the config of an image, OCI's or Docker's. It refuses what could not be passed to a
// process, and fields that are used and have the wrong type; it never panics.
func ParseConfig(b []byte) (Config, error) {
	config, _, err := parseConfig(b)
	return config, err
}

func parseConfig(b []byte) (config Config, diffIDs []string, err error) {
	if len(b) > maxDocument {
		return Config{}, nil, refuse("has %d bytes, at most %d", len(b), maxDocument)
	}
	var c struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		Config       struct {
			Entrypoint   []string                   `json:"Entrypoint"`
			Cmd          []string                   `json:"Cmd"`
			Env          []string                   `json:"Env"`
			WorkingDir   string                     `json:"WorkingDir"`
			User         string                     `json:"User"`
			StopSignal   string                     `json:"StopSignal"`
			ExposedPorts map[string]json.RawMessage `json:"ExposedPorts"`
			Volumes      map[string]json.RawMessage `json:"Volumes"`
			Labels       map[string]json.RawMessage `json:"Labels"`
			Healthcheck  json.RawMessage            `json:"Healthcheck"`
			Shell        json.RawMessage            `json:"Shell"`
			OnBuild      json.RawMessage            `json:"OnBuild"`
		} `json:"config"`
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return Config{}, nil, refuse("not valid JSON for a config: %w", err)
	}
	if c.OS != "linux" {
		return Config{}, nil, refuse("is for the operating system %s, want linux", quote(c.OS))
	}
	if c.RootFS.Type != "layers" {
		return Config{}, nil, refuse("rootfs.type is %s, want layers", quote(c.RootFS.Type))
	}
	for _, id := range c.RootFS.DiffIDs {
		if _, err := digestHex(id); err != nil {
			return Config{}, nil, err
		}
	}
	config = Config{
		Architecture: c.Architecture, OS: c.OS,
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env,
		WorkingDir: c.Config.WorkingDir, User: c.Config.User, StopSignal: c.Config.StopSignal,
		Ignored: Ignored{
			ExposedPorts: sortedKeys(c.Config.ExposedPorts),
			Volumes:      sortedKeys(c.Config.Volumes),
			Labels:       sortedKeys(c.Config.Labels),
			Healthcheck:  present(c.Config.Healthcheck),
			Shell:        present(c.Config.Shell),
			OnBuild:      present(c.Config.OnBuild),
		},
	}
	if err := config.check(); err != nil {
		return Config{}, nil, err
	}
	return config, c.RootFS.DiffIDs, nil
}

// check refuses strings that end early in a system call, and environment entries without a name.
func (c Config) check() error {
	for field, values := range map[string][]string{
		"Entrypoint": c.Entrypoint, "Cmd": c.Cmd, "Env": c.Env,
		"WorkingDir": {c.WorkingDir}, "User": {c.User}, "StopSignal": {c.StopSignal},
	} {
		for _, v := range values {
			if strings.IndexByte(v, 0) >= 0 {
				return refuse("%s has a NUL byte in %s", field, quote(v))
			}
		}
	}
	for _, v := range c.Env {
		if strings.HasPrefix(v, "=") || v == "" {
			return refuse("Env has an entry without a name: %s", quote(v))
		}
	}
	if len(c.WorkingDir) > maxPath {
		return refuse("WorkingDir has %d bytes, at most %d", len(c.WorkingDir), maxPath)
	}
	return nil
}

func sortedKeys(m map[string]json.RawMessage) []string {
	return slices.Sorted(maps.Keys(m))
}
