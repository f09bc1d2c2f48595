package main

import (
	"context"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

// environmentCheck is the environment that manifests are checked against, if any. Only the flag asks for it: a
// context that names an environment does not send check to a server.
type environmentCheck struct {
	name   string
	client pinnacev1connect.ControlServiceClient
}

// checkedEnvironment is what check --json says about the environment.
type checkedEnvironment struct {
	Name           string          `json:"name"`
	MissingVars    []string        `json:"missing_vars"`
	MissingSecrets []missingSecret `json:"missing_secrets"`
	Count          int             `json:"count"` // instances that it wants of the app
	HasRoom        bool            `json:"has_room"`
	NoRoom         string          `json:"no_room,omitempty"`
}

type missingSecret struct {
	Bundle string   `json:"bundle"`
	Absent bool     `json:"absent"` // the bundle is not there at all
	Keys   []string `json:"keys"`
}

func (e *environmentCheck) open(c *cli) (err error) {
	if c.environment == "" {
		return nil
	}
	e.client, e.name, err = c.client()
	return err
}

// check asks the server what the environment lacks; architectures are those of the image, if it is known.
func (e *environmentCheck) check(ctx context.Context, src []byte, m *manifest.Manifest, architectures []string) (*checkedEnvironment, manifest.Problems, error) {
	if e.client == nil {
		return nil, nil, nil
	}
	res, err := e.client.CheckManifest(ctx, connect.NewRequest(&pinnacev1.CheckManifestRequest{
		Environment: e.name, Manifest: src, ManifestHash: string(m.Hash()), Architectures: architectures, ClientVersion: version,
	}))
	if err != nil {
		return nil, nil, err
	}
	told := &checkedEnvironment{
		Name: e.name, MissingVars: append([]string{}, res.Msg.MissingVars...), MissingSecrets: []missingSecret{},
		Count: int(res.Msg.Count), HasRoom: res.Msg.HasRoom, NoRoom: res.Msg.NoRoom,
	}
	facts := release.Environment{Name: e.name, Vars: res.Msg.MissingVars, Count: told.Count, NoRoom: res.Msg.NoRoom}
	for _, s := range res.Msg.MissingSecrets {
		told.MissingSecrets = append(told.MissingSecrets, missingSecret{Bundle: s.Bundle, Absent: s.Absent, Keys: append([]string{}, s.Keys...)})
		facts.Secrets = append(facts.Secrets, release.MissingSecret{Bundle: s.Bundle, Absent: s.Absent, Keys: s.Keys})
	}
	return told, release.CheckEnvironment(m, facts), nil
}

// verdict ends the line that says that a manifest is valid.
func (e *environmentCheck) verdict() string {
	if e.client == nil {
		return ""
	}
	return ", can run in " + e.name
}
