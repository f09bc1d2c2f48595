package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Bounds on lists of referrers. An image with more than this many is no honest one.
const (
	maxReferrers     = 4096
	maxReferrerPages = 32
	listAttempts     = 5
)

// referrerIndex is a list of what refers to an image.
type referrerIndex struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []json.RawMessage `json:"manifests"` // as they are: others' entries may say things that we don't know
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// Referrers lists what refers to the image with that digest and has the artifact type, in the registry's
// order. It asks the referrers API, and where there is none, the tag that stands in for it. An image to which
// nothing refers has an empty list.
func (c *Client) Referrers(ctx context.Context, repository, digest, artifactType string) ([]Descriptor, error) {
	repo, err := c.repository(repository)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.bounded(ctx, 0)
	defer cancel()
	if !digestForm.MatchString(digest) {
		return nil, &Error{Kind: ErrReference, Message: fmt.Sprintf("%q is not a sha256 digest", printable(digest))}
	}
	entries, supported, err := c.askReferrers(ctx, repo, digest, artifactType)
	if err == nil && !supported {
		var index *referrerIndex
		if index, err = c.referrerTag(ctx, repo, digest, false); index != nil {
			entries = index.Manifests
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list referrers of %s@%s: %w", repo.Name(), digest, err)
	}
	var found []Descriptor
	for _, raw := range entries {
		var d Descriptor
		if json.Unmarshal(raw, &d) != nil || d.ArtifactType != artifactType {
			continue // registries need not filter, and what others have written is not ours to judge
		}
		if err := (descriptor{Digest: d.Digest, Size: d.Size}).check(maxDocument); err != nil {
			return nil, err
		}
		found = append(found, d)
	}
	return found, nil
}

// askReferrers asks the referrers API, page by page. A registry without it answers 404, and some older ones
// otherwise.
func (c *Client) askReferrers(ctx context.Context, repo name.Repository, digest, artifactType string) (entries []json.RawMessage, supported bool, err error) {
	ask := call{
		method: http.MethodGet, path: "referrers/" + digest, accept: typeIndex,
		query: url.Values{"artifactType": {artifactType}}.Encode(),
	}
	what := "the referrers of " + digest
	for range maxReferrerPages {
		res, err := c.send(ctx, repo, ask, what, http.StatusOK, http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed)
		if err != nil {
			return nil, false, err
		}
		raw, err := io.ReadAll(res.Body) // bounded by the guard
		if err := errors.Join(err, res.Body.Close()); err != nil {
			return nil, false, c.explain(ctx, err, repo, what, "")
		}
		// A page of HTML with status 200 is what some front ends answer to every path.
		if kind, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";"); res.StatusCode != http.StatusOK || kind != typeIndex {
			return nil, false, nil
		}
		var page referrerIndex
		if err := json.Unmarshal(raw, &page); err != nil {
			return nil, false, &Error{Kind: ErrWrongContent, Message: "its list of referrers is not readable", Err: err}
		}
		if entries = append(entries, page.Manifests...); len(entries) > maxReferrers {
			return nil, false, wrongContent("it lists more than %d referrers", maxReferrers)
		}
		next, ok := nextPage(res)
		if !ok {
			return entries, true, nil
		}
		ask = call{method: http.MethodGet, url: next, accept: typeIndex}
	}
	return nil, false, wrongContent("its list of referrers has more than %d pages", maxReferrerPages)
}

// nextPage reads the Link header. Where it may lead is the guard's business.
func nextPage(res *http.Response) (*url.URL, bool) {
	link, relation, _ := strings.Cut(res.Header.Get("Link"), ";")
	link = strings.TrimSpace(link)
	if !strings.HasPrefix(link, "<") || !strings.HasSuffix(link, ">") || !strings.Contains(relation, `rel="next"`) {
		return nil, false
	}
	u, err := res.Request.URL.Parse(link[1 : len(link)-1])
	return u, err == nil
}

// referrersTag is the tag under which registries without the API keep the list: the digest, with a hyphen.
func referrersTag(digest string) string { return strings.Replace(digest, ":", "-", 1) }

// referrerTag reads the list under its tag; nil when there is none.
func (c *Client) referrerTag(ctx context.Context, repo name.Repository, digest string, push bool) (*referrerIndex, error) {
	tag := referrersTag(digest)
	what := "tag " + tag + " of " + repo.RepositoryStr()
	res, err := c.send(ctx, repo, call{method: http.MethodGet, path: "manifests/" + tag, accept: acceptedTypes, push: push},
		what, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(res.Body) // bounded by the guard
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return nil, c.explain(ctx, err, repo, what, "")
	}
	if res.StatusCode == http.StatusNotFound {
		return nil, nil
	}
	var index referrerIndex
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, &Error{Kind: ErrWrongContent, Message: "what is under " + what + " is not readable", Err: err}
	}
	if index.MediaType == "" {
		index.MediaType = res.Header.Get("Content-Type")
	}
	if index.MediaType != typeIndex {
		return nil, wrongContent("%s is kept for a list of referrers, and has something of type %s", what, printable(index.MediaType))
	}
	if len(index.Manifests) > maxReferrers {
		return nil, wrongContent("%s lists more than %d referrers", what, maxReferrers)
	}
	return &index, nil
}

// listByTag adds an entry to the list under the tag. The protocol has no compare-and-swap: two who add at
// the same time can lose one entry, so the list is read again until it has ours.
func (c *Client) listByTag(ctx context.Context, repo name.Repository, subject string, entry Descriptor) error {
	ours, err := json.Marshal(entry)
	if err != nil {
		return err
	}
	for range listAttempts {
		index, err := c.referrerTag(ctx, repo, subject, true)
		if err != nil {
			return err
		}
		if index == nil {
			index = &referrerIndex{}
		}
		if index.has(entry.Digest) {
			return nil
		}
		index.SchemaVersion, index.MediaType = 2, typeIndex
		index.Manifests = append(index.Manifests, ours)
		raw, err := json.Marshal(index)
		if err != nil {
			return err
		}
		if len(raw) > maxDocument {
			return wrongContent("the list of referrers would have %d bytes, at most %d are allowed", len(raw), maxDocument)
		}
		if _, err := c.pushManifest(ctx, repo, referrersTag(subject), typeIndex, raw); err != nil {
			return err
		}
	}
	return &Error{
		Kind: ErrUnreachable, Registry: repo.RegistryStr(), Message: "the list of referrers of " + subject + " keeps being overwritten",
		Hint: "try again when nobody else adds to this image",
	}
}

func (x *referrerIndex) has(digest string) bool {
	for _, raw := range x.Manifests {
		var d descriptor
		if json.Unmarshal(raw, &d) == nil && d.Digest == digest {
			return true
		}
	}
	return false
}
