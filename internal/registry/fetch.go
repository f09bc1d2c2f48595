package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// maxAttempts is how often a request is made when the registry is overloaded or the connection breaks.
const maxAttempts = 4

// Blob opens the blob with that digest for reading. repository is that of an Image; size is what the
// manifest declares: a stream of another length ends in an error. The caller compares the digest, and
// closes the stream. A stream that breaks off is not continued.
func (c *Client) Blob(ctx context.Context, repository, digest string, size int64) (io.ReadCloser, error) {
	repo, err := c.repository(repository)
	if err != nil {
		return nil, err
	}
	if err := (descriptor{Digest: digest, Size: size}).check(1 << 62); err != nil {
		return nil, err
	}
	return c.blob(ctx, repo, digest, size)
}

func (c *Client) blob(ctx context.Context, repo name.Repository, digest string, size int64) (io.ReadCloser, error) {
	what := "blob " + digest + " of " + repo.RepositoryStr()
	res, err := c.get(context.WithValue(ctx, blobKey{}, true), repo, "blobs/"+digest, "application/octet-stream", what)
	if err != nil {
		return nil, err
	}
	if n := res.ContentLength; n >= 0 && n != size {
		return nil, errors.Join(wrongContent("the registry has %s with %d bytes, but %d are declared", what, n, size), res.Body.Close())
	}
	return &exactly{ReadCloser: res.Body, left: size, what: what}, nil
}

// document fetches a manifest or an index, of at most maxDocument bytes. Nothing is verified yet.
func (c *Client) document(ctx context.Context, repo name.Repository, id, what string) (raw []byte, contentType string, err error) {
	res, err := c.get(ctx, repo, "manifests/"+id, acceptedTypes, what)
	if err != nil {
		return nil, "", err
	}
	raw, err = io.ReadAll(res.Body) // bounded by the guard
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return nil, "", explain(err, repo, what, "")
	}
	return raw, res.Header.Get("Content-Type"), nil
}

// get makes a GET request below the repository and returns the answer when it is 200, and an Error otherwise.
func (c *Client) get(ctx context.Context, repo name.Repository, path, accept, what string) (*http.Response, error) {
	return c.send(ctx, repo, call{method: http.MethodGet, path: path, accept: accept}, what, http.StatusOK)
}

// call is a request to a repository.
type call struct {
	method string
	path   string   // below /v2/<repository>/
	url    *url.URL // instead of path: where the registry sent us; the guard says whether it may
	query  string
	accept string
	body   []byte
	kind   string // media type of body
	push   bool   // needs the right to write
}

// send makes a request and returns the answer when its status is one of good, and an Error otherwise. It
// waits and tries again when that can help.
func (c *Client) send(ctx context.Context, repo name.Repository, r call, what string, good ...int) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		res, credential, err := c.try(ctx, repo, r, good)
		if err == nil {
			return res, nil
		}
		explained := explain(err, repo, what, credential)
		if errors.Is(explained, ErrUnauthorized) {
			c.forget(repo, r.push)
			if r.push {
				explained = explainRefusedPush(explained, repo, what, credential)
			}
		}
		if attempt == maxAttempts || !temporary(err) || !c.wait(ctx, attempt, err) {
			return nil, explained
		}
	}
}

// retryAfter carries how long the registry asked us to wait.
type retryAfter struct {
	error
	wait time.Duration
}

func (r retryAfter) Unwrap() error { return r.error }

func (c *Client) try(ctx context.Context, repo name.Repository, r call, good []int) (_ *http.Response, credential string, _ error) {
	s, err := c.session(ctx, repo, r.push)
	if s != nil {
		credential = s.credential
	}
	if err != nil {
		return nil, credential, err
	}
	u := r.url
	if u == nil {
		u = &url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/" + r.path, RawQuery: r.query}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), bytes.NewReader(r.body))
	if err != nil {
		return nil, credential, err
	}
	if r.accept != "" {
		req.Header.Set("Accept", r.accept)
	}
	if r.kind != "" {
		req.Header.Set("Content-Type", r.kind)
	}
	res, err := s.client.Do(req)
	if err != nil {
		return nil, credential, err
	}
	if err := transport.CheckError(res, good...); err != nil {
		err = errors.Join(err, res.Body.Close())
		if after, ok := parseRetryAfter(res.Header.Get("Retry-After")); ok {
			err = retryAfter{err, after}
		}
		return nil, credential, err
	}
	return res, credential, nil
}

func parseRetryAfter(value string) (time.Duration, bool) {
	if seconds, err := strconv.Atoi(value); err == nil && seconds >= 0 && seconds < 1<<20 {
		return time.Duration(seconds) * time.Second, true
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at)), true
	}
	return 0, false
}

// temporary says whether the same request may succeed a moment later. A registry that refuses connections
// is down; whoever is in front of the terminal wants to know that now.
func temporary(err error) bool {
	if answer, ok := errors.AsType[*transport.Error](err); ok {
		switch answer.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	if errors.As(err, new(*Error)) || isTLS(err) || errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, new(*net.DNSError)) {
		return false
	}
	var network net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.As(err, &network) && network.Timeout()
}

// wait sleeps before the next attempt and says whether there is one: not when ctx ends first, nor when the
// registry asks for more patience than anybody has.
func (c *Client) wait(ctx context.Context, attempt int, err error) bool {
	// Jitter keeps a fleet of agents from coming back all at once.
	d := time.Duration(float64(c.limits.backoff<<(attempt-1)) * (0.5 + rand.Float64())) //nolint:gosec // G404: nothing secret about a pause
	if asked, ok := errors.AsType[retryAfter](err); ok {
		d = max(d, asked.wait)
	}
	if d > c.limits.longest {
		return false
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
