package registry

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
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

// document fetches a manifest or an index, of at most maxDocument bytes. Nothing is verified yet.
func (c *Client) document(ctx context.Context, repo name.Repository, id, what string, attempts int) (raw []byte, contentType string, err error) {
	res, err := c.send(ctx, repo, call{method: http.MethodGet, path: "manifests/" + id, accept: acceptedTypes, attempts: attempts}, what, http.StatusOK)
	if err != nil {
		return nil, "", err
	}
	raw, err = io.ReadAll(res.Body) // bounded by the guard
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return nil, "", c.explain(ctx, err, repo, what, "")
	}
	return raw, res.Header.Get("Content-Type"), nil
}

// call is a request to a repository.
type call struct {
	method   string
	path     string   // below /v2/<repository>/
	url      *url.URL // instead of path: where the registry sent us; the guard says whether it may
	query    string
	accept   string
	header   map[string]string // more of it
	body     []byte
	kind     string // media type of body
	push     bool   // needs the right to write
	attempts int    // at most; 0 for the usual number
}

// send makes a request and returns the answer when its status is one of good, and an Error otherwise. It
// waits and tries again when that can help.
func (c *Client) send(ctx context.Context, repo name.Repository, r call, what string, good ...int) (*http.Response, error) {
	attempts := cmp.Or(r.attempts, maxAttempts)
	for attempt := 1; ; attempt++ {
		res, credential, err := c.try(ctx, repo, r, good)
		if err == nil {
			return res, nil
		}
		explained := c.explain(ctx, err, repo, what, credential)
		if errors.Is(explained, ErrUnauthorized) {
			c.forget(repo, r.push)
			if r.push {
				explained = explainRefusedPush(explained, repo, what, credential)
			}
		}
		if attempt == attempts || !temporary(err) || !c.wait(ctx, attempt, err, repo.RegistryStr()) {
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

func (c *Client) try(ctx context.Context, repo name.Repository, r call, good []int) (_ *http.Response, credential string, err error) {
	asked := time.Duration(-1)
	ctx = context.WithValue(ctx, askedToWait{}, &asked)
	defer func() {
		if err != nil && asked >= 0 {
			err = retryAfter{err, asked}
		}
	}()
	s, err := c.session(ctx, repo, r.push)
	if s != nil {
		credential = s.credential
	}
	if err != nil {
		return nil, credential, err
	}
	u := r.url
	if u == nil {
		u = &url.URL{Scheme: s.scheme, Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/" + r.path, RawQuery: r.query}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), bytes.NewReader(r.body))
	if err != nil {
		return nil, credential, err
	}
	for key, value := range r.header {
		req.Header.Set(key, value)
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
	if err := checkStatus(res, good...); err != nil {
		return nil, credential, errors.Join(err, res.Body.Close())
	}
	return res, credential, nil
}

// maxError is how much of an answer that is an error is read.
const maxError = 64 << 10

// checkStatus turns an answer with another status than one of good into an error, with what it says.
func checkStatus(res *http.Response, good ...int) error {
	body := res.Body
	res.Body = io.NopCloser(io.LimitReader(body, maxError))
	err := transport.CheckError(res, good...)
	res.Body = body
	if err != nil && !errors.As(err, new(*transport.Error)) {
		// The text of the error did not come through; the status is what counts.
		err = &transport.Error{StatusCode: res.StatusCode, Request: res.Request}
	}
	return err
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
	if errors.As(err, new(*Error)) || isTLS(err) || errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, new(*net.DNSError)) || isDialTimeout(err) {
		return false
	}
	var network net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.As(err, &network) && network.Timeout()
}

// isDialTimeout is for hosts that do not answer at all: to wait for them several times over is no use.
func isDialTimeout(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// wait sleeps before the next attempt and says whether there is one: not when ctx ends first, nor when the
// registry asks for more patience than anybody has.
func (c *Client) wait(ctx context.Context, attempt int, err error, host string) bool {
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
	if d >= 10*time.Second {
		c.options.Notice(fmt.Sprintf("registry %s asks to wait; trying again in %s", host, d.Round(time.Second)))
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
