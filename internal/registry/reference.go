package registry

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// parse reads a reference as a person writes it: shop/web:2, registry.example/shop/web@sha256:….
func (c *Client) parse(ref string) (name.Reference, error) {
	if err := notInRegistry(ref); err != nil {
		return nil, err
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, &Error{
			Kind: ErrReference, Message: fmt.Sprintf("%q is not an image reference", printable(ref)), Hint: referenceHint(ref), Err: err,
		}
	}
	return parsed, nil
}

// repository reads the Repository of an Image.
func (c *Client) repository(repository string) (name.Repository, error) {
	repo, err := name.NewRepository(repository, name.StrictValidation)
	if err != nil {
		return name.Repository{}, &Error{Kind: ErrReference, Message: fmt.Sprintf("%q is not a repository", printable(repository)), Err: err}
	}
	return repo, nil
}

// notInRegistry recognises what people give instead of a reference. It goes by the text alone; nothing is
// opened.
func notInRegistry(ref string) error {
	refuse := func(what, hint string) error {
		return &Error{Kind: ErrNotAnImage, Message: fmt.Sprintf("%q is %s, not an image in a registry", printable(ref), what), Hint: hint}
	}
	const push = "push it first: skopeo copy %s docker://REGISTRY/NAME:TAG"
	scheme, rest, _ := strings.Cut(ref, ":")
	switch scheme {
	case "oci", "oci-archive", "docker-archive", "docker-daemon", "containers-storage", "dir", "sif", "tarball":
		return refuse("a local archive or store", fmt.Sprintf(push, printable(ref)))
	case "docker", "http", "https", "oci+http", "oci+https":
		if bare, ok := strings.CutPrefix(rest, "//"); ok {
			return refuse("a URL", "write "+printable(bare))
		}
	}
	base := strings.ToLower(path.Base(ref))
	switch {
	case hasSuffix(base, ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz"):
		return refuse("an archive", fmt.Sprintf(push, "docker-archive:"+printable(ref)))
	case hasSuffix(base, ".yml", ".yaml", ".json"):
		return refuse("a compose file or other configuration", "Pinnace runs one image for an app; give the image of one service, as its \"image:\" line has it")
	case hasSuffix(base, ".toml"):
		return refuse("a manifest", "give the image as well as the manifest")
	case base == "dockerfile" || base == "containerfile" || hasSuffix(base, ".dockerfile"):
		return refuse("a build file", "build it and push the image: buildah build -t REGISTRY/NAME:TAG, then buildah push")
	case strings.HasPrefix(ref, "/"), strings.HasPrefix(ref, "./"), strings.HasPrefix(ref, "../"), strings.HasPrefix(ref, "~"):
		return refuse("a path", "push the image to a registry and give its reference: REGISTRY/NAME:TAG")
	}
	return nil
}

func hasSuffix(s string, suffixes ...string) bool {
	for _, suffix := range suffixes {
		if strings.HasSuffix(s, suffix) {
			return true
		}
	}
	return false
}

func referenceHint(ref string) string {
	switch {
	case ref == "":
		return "give an image: REGISTRY/NAME:TAG"
	case ref != strings.ToLower(ref) && !strings.Contains(ref, "@"):
		return "names of repositories are in lower case"
	case strings.Contains(ref, "@") && !strings.Contains(ref, "@sha256:"):
		return "images are pinned by sha256 digests: NAME@sha256: and 64 hexadecimal digits"
	}
	return "write it as REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST"
}

// mayBePlain says whether a host may be spoken to without TLS.
func (c *Client) mayBePlain(host string) bool {
	return isLoopback(hostname(strings.ToLower(host))) || c.host(host).PlainHTTP
}

// isLoopback goes by the name, so that no DNS answer can make another host one. The dialer sees to it that
// such a name leads nowhere else.
func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// hostname is host:port without the port, and without the brackets of IPv6.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.Trim(host, "[]")
}
