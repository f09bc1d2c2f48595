package registry

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/name"
)

// CheckBlob asks whether the repository has a blob of that digest and size, without fetching it. The error
// is ErrNotFound when it has none, and ErrWrongContent when it has another size.
func (c *Client) CheckBlob(ctx context.Context, repository, digest string, size int64) error {
	repo, err := c.repository(repository)
	if err != nil {
		return err
	}
	ctx, cancel := c.bounded(ctx, 0)
	defer cancel()
	if err := (descriptor{Digest: digest, Size: size}).check(1 << 62); err != nil {
		return err
	}
	what := "blob " + digest + " of " + repo.RepositoryStr()
	res, err := c.send(context.WithValue(ctx, blobKey{}, true), repo, call{method: http.MethodHead, path: "blobs/" + digest}, what, http.StatusOK)
	if err != nil {
		return err
	}
	if err := res.Body.Close(); err != nil {
		return err
	}
	if n := res.ContentLength; n >= 0 && n != size {
		return wrongContent("the registry has %s with %d bytes, but %d are declared", what, n, size)
	}
	return nil
}

// Push puts an artifact into a repository, and returns the digest of its manifest. The subject's registry
// lists it: by itself when it has the referrers API, by the tag that the distribution specification has for
// this otherwise. There is no tag of its own. Pushing the same artifact again changes nothing.
func (c *Client) Push(ctx context.Context, repository string, a Artifact) (digest string, err error) {
	repo, err := c.repository(repository)
	if err != nil {
		return "", err
	}
	ctx, cancel := c.bounded(ctx, 0)
	defer cancel()
	raw, err := a.manifest()
	if err != nil {
		return "", err
	}
	if len(raw) > maxDocument {
		return "", fmt.Errorf("push artifact: its manifest has %d bytes, at most %d", len(raw), maxDocument)
	}
	for _, blob := range append([]Content{a.Config}, a.Layers...) {
		if err := c.pushBlob(ctx, repo, blob.Bytes); err != nil {
			return "", fmt.Errorf("push artifact to %s: %w", repo.Name(), err)
		}
	}
	listed, err := c.pushManifest(ctx, repo, digestOf(raw), typeManifest, raw)
	if err != nil {
		return "", fmt.Errorf("push artifact to %s: %w", repo.Name(), err)
	}
	if !listed {
		entry := Descriptor{
			MediaType: typeManifest, Digest: digestOf(raw), Size: int64(len(raw)), ArtifactType: a.Type, Annotations: a.Annotations,
		}
		if err := c.listByTag(ctx, repo, a.Subject.Digest, entry); err != nil {
			return "", fmt.Errorf("list artifact in %s: %w", repo.Name(), err)
		}
	}
	return digestOf(raw), nil
}

// pushBlob uploads a blob unless it is there.
func (c *Client) pushBlob(ctx context.Context, repo name.Repository, b []byte) error {
	digest := digestOf(b)
	what := "blob " + digest + " of " + repo.RepositoryStr()
	res, err := c.send(context.WithValue(ctx, blobKey{}, true), repo, call{method: http.MethodHead, path: "blobs/" + digest, push: true},
		what, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return err
	}
	if err := res.Body.Close(); err != nil || res.StatusCode == http.StatusOK {
		return err
	}
	res, err = c.send(ctx, repo, call{method: http.MethodPost, path: "blobs/uploads/", push: true}, what, http.StatusAccepted)
	if err != nil {
		return err
	}
	if err := res.Body.Close(); err != nil {
		return err
	}
	to, err := res.Location()
	if err != nil {
		return wrongContent("the registry does not say where to upload %s", what)
	}
	query := to.Query()
	query.Set("digest", digest)
	to.RawQuery = query.Encode()
	to.Fragment = ""
	res, err = c.send(ctx, repo, call{method: http.MethodPut, url: to, body: b, kind: "application/octet-stream", push: true},
		what, http.StatusCreated, http.StatusNoContent)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// pushManifest puts a document under a digest or a tag, and says whether the registry lists it as a referrer
// of its subject by itself.
func (c *Client) pushManifest(ctx context.Context, repo name.Repository, id, mediaType string, raw []byte) (listed bool, err error) {
	res, err := c.send(ctx, repo, call{
		method: http.MethodPut, path: "manifests/" + url.PathEscape(id), body: raw, kind: mediaType, push: true,
	}, "manifest "+id+" of "+repo.RepositoryStr(), http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err != nil {
		return false, err
	}
	return res.Header.Get("OCI-Subject") != "", res.Body.Close()
}
