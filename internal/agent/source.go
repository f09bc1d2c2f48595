package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/pinnacehq/pinnace/internal/image"
)

// source gives blobs from the first of the repositories that has them, asked with the logins for their registries. given
// may be nil; it is told what came.
func (a *Agent) source(repositories []string, logins []Login, given *givenBlobs) image.Source {
	s := fallbackSource{stall: a.timing.stall, given: given}
	for _, r := range repositories {
		if login, ok := loginFor(logins, r); ok && a.SourceAs != nil {
			s.from = append(s.from, namedSource{r, a.SourceAs(r, login)})
			continue
		}
		s.from = append(s.from, namedSource{r, a.Source(r)})
	}
	return s
}

// beginningAt is the list for a try: each begins with another repository, because what is wrong with one can show
// only when all of a blob is there.
func beginningAt(repositories []string, try int) []string {
	if len(repositories) == 0 {
		return nil
	}
	first := try % len(repositories)
	return slices.Concat(repositories[first:], repositories[:first])
}

type namedSource struct {
	repository string
	image.Source
}

type fallbackSource struct {
	from  []namedSource
	stall time.Duration
	given *givenBlobs // may be nil
}

// Blob opens the blob at the first repository that has it. Reading fails when the registry stops sending.
func (s fallbackSource) Blob(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
	var errs []error
	for _, src := range s.from {
		blobCtx, cancel := context.WithCancelCause(ctx)
		r, err := src.Blob(blobCtx, digest, size)
		if err == nil {
			if s.given != nil {
				r = &givenReader{ReadCloser: r, left: size, came: func() { s.given.came(digest, src.repository) }}
			}
			return &stallReader{ReadCloser: r, cancel: cancel, cause: func() error { return context.Cause(blobCtx) }, patience: s.stall}, nil
		}
		cancel(nil)
		errs = append(errs, fmt.Errorf("%s: %w", src.repository, err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, errors.New("the release names no repository that has its image")
	}
	return nil, inOneLine(errs)
}

// stallReader gives up a blob when the next bytes do not come: a source that hangs would hang the instance.
type stallReader struct {
	io.ReadCloser
	cancel   context.CancelCauseFunc // ends the request whose body this is
	cause    func() error            // why the request was ended, or nil
	patience time.Duration
}

func (r *stallReader) Read(b []byte) (int, error) {
	late := time.AfterFunc(r.patience, func() {
		r.cancel(fmt.Errorf("the registry has sent nothing for %s", r.patience))
	})
	defer late.Stop()
	n, err := r.ReadCloser.Read(b)
	if cause := r.cause(); cause != nil && err != nil && !errors.Is(err, io.EOF) {
		err = cause
	}
	return n, err
}

func (r *stallReader) Close() error {
	defer r.cancel(nil)
	return r.ReadCloser.Close()
}

// inOneLine joins errors as errors.Join does, for people who get them as one line of a list.
func inOneLine(errs []error) error {
	var joined error
	for _, err := range errs {
		switch {
		case err == nil:
		case joined == nil:
			joined = err
		default:
			joined = fmt.Errorf("%w; %w", joined, err)
		}
	}
	return joined
}
