package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/registry"
)

// A source gives the blobs of one repository, as the agent's does.
type source struct {
	client     *registry.Client
	repository string
}

func (s source) Blob(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
	return s.client.Blob(ctx, s.repository, digest, size)
}

// A took is what one process says of its own work, beside what is measured around it.
type took struct {
	Pull  time.Duration `json:"pull"`  // from the first request to the complete, synced image
	First time.Duration `json:"first"` // the same image looked up once more, for the first time in a process
	Again time.Duration `json:"again"` // the same, median of the lookups after it
}

// pull is the process that is measured.
func pull(ctx context.Context, dir string, lookups int, args []string) error {
	if len(args) != 1 {
		return errors.New("want one reference")
	}
	client := registry.New(registry.Options{Architectures: []string{runtime.GOARCH}})
	defer client.Close()
	store, err := image.Open(dir)
	if err != nil {
		return err
	}
	begin := time.Now()
	resolved, err := client.Resolve(ctx, args[0])
	if err != nil {
		return err
	}
	p := resolved.Platforms[0]
	get := func() error {
		_, err := store.Pull(ctx, source{client, resolved.Repository}, p.ManifestDigest, p.Manifest, p.Config, nil)
		return err
	}
	if err := get(); err != nil {
		return errors.Join(err, store.Close())
	}
	var t took
	t.Pull = time.Since(begin)
	var again []time.Duration
	for range lookups {
		begin := time.Now()
		_, ok, err := store.Lookup(p.ManifestDigest)
		if err != nil || !ok {
			return errors.Join(fmt.Errorf("the image is not there: %w", err), store.Close())
		}
		again = append(again, time.Since(begin))
	}
	if lookups > 1 {
		t.First, t.Again = again[0], median(again[1:])
	}
	return errors.Join(json.NewEncoder(os.Stdout).Encode(t), store.Close())
}
