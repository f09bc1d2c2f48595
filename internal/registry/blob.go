package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Blob opens the blob with that digest for reading. repository is that of an Image; size is what the
// manifest declares: a stream of another length ends in an error. The caller compares the digest, and
// closes the stream.
//
// A stream that breaks off is continued where it broke off, in the same registry or the next place that the
// blob is kept at, so that the caller sees one stream. At most a fifth more than the blob's size is fetched,
// unless a whole answer is asked for again by the caller. When it was a mirror that sent wrong bytes, the
// stream ends in ErrMirror, and the mirror is not asked for this blob again: the caller's next try goes to
// somebody else.
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
	ctx, cancel := c.bounded(context.WithValue(ctx, blobKey{}, true), size)
	b := &blobReader{c: c, ctx: ctx, cancel: cancel, repo: repo, digest: digest, size: size, places: c.places(repo, digest)}
	if b.places[0].mirror {
		b.hash = sha256.New()
	}
	if err := b.open(); err != nil {
		cancel()
		return nil, err
	}
	return b, nil
}

// blobReader reads one blob from as many answers as it takes.
type blobReader struct {
	c      *Client
	ctx    context.Context // a reader has no other way to end with its caller
	cancel context.CancelFunc
	repo   name.Repository
	digest string
	size   int64

	places []place // that are left; the first is the one in use
	used   []place // the mirrors that some bytes came from
	hash   hash.Hash

	body    io.ReadCloser // of the answer that is being read; nil when there is none
	until   int64         // where that answer ends
	offset  int64         // bytes that the caller has
	fetched int64         // bytes that came
	etag    string        // of the first answer of this place, when it is a strong one
	cuts    int           // since the last good stretch
	goodAt  int64         // where that ended
	err     error         // once there is one
}

func (b *blobReader) what() string { return "blob " + b.digest + " of " + b.repo.RepositoryStr() }

// Read implements io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	for b.err == nil {
		if len(p) == 0 {
			return 0, nil
		}
		if b.body == nil {
			if b.err = b.open(); b.err != nil {
				break
			}
		}
		n, err := b.next(p)
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, ErrMirror) {
			b.err = err
			if n > 0 || err != nil {
				return n, err
			}
			continue
		}
		b.err = b.cut(err)
		if n > 0 {
			return n, b.err
		}
	}
	return 0, b.err
}

// next reads from the answer at hand. io.EOF is the end of the blob, any other error that of the answer.
func (b *blobReader) next(p []byte) (int, error) {
	left := b.until - b.offset
	if left == 0 {
		// The blob may end here, but not go on.
		n, err := b.body.Read(make([]byte, 1))
		switch {
		case n > 0 && len(b.used) == 0:
			return 0, wrongContent("%s is longer than the %d bytes that its manifest says", b.what(), b.size)
		case n == 0 && err == nil:
			return 0, nil
		case b.until < b.size:
			return 0, io.ErrUnexpectedEOF // this part of it
		}
		return 0, b.verified() // whatever the end looks like: all of it is there
	}
	if int64(len(p)) > left {
		p = p[:left]
	}
	n, err := b.body.Read(p)
	b.offset += int64(n)
	b.fetched += int64(n)
	if b.hash != nil {
		b.hash.Write(p[:n])
	}
	if errors.Is(err, io.EOF) {
		err = nil
		if b.offset < b.until {
			err = errShort
		}
	}
	return n, err
}

var errShort = errors.New("the answer ends too early")

// verified is io.EOF when the blob is complete. Only what mirrors have a part in is hashed here: the caller
// does it for everything, but cannot tell the mirror to blame.
func (b *blobReader) verified() error {
	if len(b.used) > 0 {
		if got := "sha256:" + hex.EncodeToString(b.hash.Sum(nil)); got != b.digest {
			err := mirrorError{wrongContent("the bytes that mirror %s sent for %s have the digest %s", b.used[0].repo.RegistryStr(), b.digest, got)}
			for _, p := range b.used { // whose bytes are wrong is not known
				b.c.passOver(p, b.repo, b.digest, err)
			}
			return err
		}
	}
	return io.EOF
}

// cut ends an answer that broke off, and says whether there can be another: nil when there can.
func (b *blobReader) cut(cause error) error {
	_ = b.body.Close() // it is broken already
	b.body = nil
	if b.ctx.Err() != nil {
		return b.c.explain(b.ctx, cause, b.place().repo, b.what(), "")
	}
	if errors.As(cause, new(*Error)) {
		return b.leave(cause)
	}
	// Each stretch that is worth it earns patience anew, so that a bad line ends well and a server that
	// sends a byte each time does not go on for ever.
	if b.offset-b.goodAt >= min(1<<20, max(1, b.size/64)) {
		b.cuts, b.goodAt = 0, b.offset
	}
	b.cuts++
	if b.cuts >= b.place().attempts() {
		return b.leave(&Error{
			Kind: ErrUnreachable, Registry: b.place().repo.RegistryStr(), Err: shortest(cause),
			Message: fmt.Sprintf("%s broke off after %d of %d bytes", b.what(), b.offset, b.size),
			Hint:    "try again; what was fetched is not kept",
		})
	}
	if !b.c.wait(b.ctx, b.cuts, cause, b.place().repo.RegistryStr()) {
		return b.c.explain(b.ctx, cause, b.place().repo, b.what(), "")
	}
	return nil
}

func (b *blobReader) place() place { return b.places[0] }

// leave gives up a place. It returns nil when there is another one.
func (b *blobReader) leave(err error) error {
	if !b.place().mirror || b.ctx.Err() != nil {
		return err
	}
	b.c.passOver(b.place(), b.repo, b.digest, err)
	b.places, b.etag, b.cuts, b.goodAt = b.places[1:], "", 0, b.offset
	return nil
}

// open asks for the rest of the blob, at the first place that has it.
func (b *blobReader) open() error {
	for {
		err := b.ask()
		if err == nil {
			return nil
		}
		if err := b.leave(err); err != nil {
			return err
		}
	}
}

func (b *blobReader) ask() error {
	p := b.place()
	ask := call{method: http.MethodGet, path: "blobs/" + b.digest, accept: "application/octet-stream", attempts: p.attempts()}
	good := []int{http.StatusOK}
	if b.offset > 0 {
		ask.header = map[string]string{"Range": "bytes=" + strconv.FormatInt(b.offset, 10) + "-"}
		good = append(good, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable)
	}
	res, err := b.c.send(b.ctx, p.repo, ask, b.what(), good...)
	if err != nil {
		return err
	}
	if err := b.accept(res); err != nil {
		return errors.Join(err, res.Body.Close())
	}
	b.body = res.Body
	if p.mirror {
		if !slices.Contains(b.used, p) {
			b.used = append(b.used, p)
		}
	} else if b.offset == 0 {
		b.hash = nil // the caller's is enough
	}
	return nil
}

// accept looks at an answer before anything of it is read, and skips what the caller has already.
func (b *blobReader) accept(res *http.Response) error {
	length := res.ContentLength
	if tag := res.Header.Get("Etag"); strings.HasPrefix(tag, `"`) && res.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		if b.etag != "" && b.etag != tag {
			return wrongContent("%s changed while it was fetched: its entity tag was %s, and is %s now", b.what(), printable(b.etag), printable(tag))
		}
		b.etag = tag
	}
	switch res.StatusCode {
	case http.StatusRequestedRangeNotSatisfiable:
		return wrongContent("the registry has nothing after byte %d of %s, but %d bytes are declared", b.offset, b.what(), b.size)
	case http.StatusPartialContent:
		r, err := parseContentRange(res.Header.Get("Content-Range"))
		if err != nil || r.first != b.offset || r.last >= b.size || r.total >= 0 && r.total != b.size || length >= 0 && length != r.last-r.first+1 {
			return wrongContent("the registry was asked for %s from byte %d of %d, and answers with %q",
				b.what(), b.offset, b.size, printable(res.Header.Get("Content-Range")))
		}
		b.until = r.last + 1
		return nil
	}
	if length >= 0 && length != b.size {
		return wrongContent("the registry has %s with %d bytes, but %d are declared", b.what(), length, b.size)
	}
	b.until = b.size
	return b.skip(res.Body)
}

// skip is for registries that send all of a blob when asked for the rest of it. That is taken when it was
// little that we had.
func (b *blobReader) skip(body io.Reader) error {
	if b.offset == 0 {
		return nil
	}
	if again := b.fetched + b.size; again > b.size+b.size/5+64<<10 {
		return &Error{
			Kind: ErrUnreachable, Registry: b.place().repo.RegistryStr(),
			Message: fmt.Sprintf("%s broke off after %d of %d bytes, and the registry does not continue: it ignores the Range", b.what(), b.offset, b.size),
			Hint:    "try again; it starts from the beginning then",
		}
	}
	n, err := io.CopyN(io.Discard, body, b.offset)
	b.fetched += n
	if err != nil {
		return b.c.explain(b.ctx, err, b.place().repo, b.what(), "")
	}
	return nil
}

// Close implements io.Closer.
func (b *blobReader) Close() error {
	defer b.cancel()
	if b.err == nil {
		b.err = errors.New("read after close")
	}
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}

// contentRange is which bytes of how many a partial answer has.
type contentRange struct {
	first, last int64
	total       int64 // negative when it is not said
}

// parseContentRange reads "bytes 0-4/10".
func parseContentRange(s string) (contentRange, error) {
	r := contentRange{total: -1}
	malformed := errors.New("malformed Content-Range")
	unit, rest, _ := strings.Cut(s, " ")
	span, total, ok := strings.Cut(rest, "/")
	first, last, ok2 := strings.Cut(span, "-")
	if !strings.EqualFold(unit, "bytes") || !ok || !ok2 {
		return r, malformed
	}
	var err error
	if r.first, err = parseOffset(first); err != nil {
		return r, malformed
	}
	if r.last, err = parseOffset(last); err != nil || r.last < r.first {
		return r, malformed
	}
	if total == "*" {
		return r, nil
	}
	if r.total, err = parseOffset(total); err != nil || r.total <= r.last {
		return r, malformed
	}
	return r, nil
}

// parseOffset takes digits only, and none so large that a sum of two would overflow.
func parseOffset(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 62)
	return int64(n), err
}
