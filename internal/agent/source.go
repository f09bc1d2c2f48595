package agent

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/pinnacehq/pinnace/internal/image"
)

// source gives blobs from the first of the repositories that has them.
func (a *Agent) source(repositories []string) image.Source {
	var s fallbackSource
	for _, r := range repositories {
		s = append(s, namedSource{r, a.Source(r)})
	}
	return s
}

type namedSource struct {
	repository string
	image.Source
}

type fallbackSource []namedSource

// Blob opens the blob at the first repository that has it.
func (s fallbackSource) Blob(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
	var errs []error
	for _, src := range s {
		r, err := src.Blob(ctx, digest, size)
		if err == nil {
			return r, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", src.repository, err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, errors.New("the release names no repository that has its image")
	}
	return nil, errors.Join(errs...)
}
