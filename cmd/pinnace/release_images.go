package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/registry"
	"github.com/pinnacehq/pinnace/internal/release"
)

// imageFiles looks into images: their layers are kept in the user's cache, which may be removed at any time.
type imageFiles struct {
	c     *cli
	store *image.Store
	temp  string // removed at the end; "" when the store is the cache
	trees []*image.Tree
}

// imageFiles opens the cache. A user without a usable one gets a directory for this command alone.
func (c *cli) imageFiles() (*imageFiles, error) {
	if dir := c.cacheDir(); dir != "" {
		if store, err := image.Open(filepath.Join(dir, "images")); err == nil {
			return &imageFiles{c: c, store: store}, nil
		}
	}
	temp, err := os.MkdirTemp("", "pinnace-images-")
	if err != nil {
		return nil, err
	}
	store, err := image.Open(temp)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(temp))
	}
	return &imageFiles{c: c, store: store, temp: temp}, nil
}

// cacheDir is where a user's programs may keep what can be made again; "" when that is not known.
func (c *cli) cacheDir() string {
	if dir := c.getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "pinnace")
	}
	if home := c.getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".cache", "pinnace")
	}
	return ""
}

// Close gives everything back.
func (f *imageFiles) Close() error {
	var errs []error
	for _, t := range f.trees {
		errs = append(errs, t.Close())
	}
	errs = append(errs, f.store.Close())
	if f.temp != "" {
		errs = append(errs, os.RemoveAll(f.temp))
	}
	return errors.Join(errs...)
}

// inUse holds an image for as long as a command looks into it.
var inUse = image.LeaseSpec{Owner: leaseOwner, Kind: "in use", Process: true}

// cached gives the files of an image whose layers are there, nil otherwise.
func (f *imageFiles) cached(ctx context.Context, manifestDigest string) (*image.Tree, error) {
	_, err := f.store.Lease(ctx, inUse, manifestDigest, nil, nil)
	if errors.Is(err, image.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	img, ok, err := f.store.Lookup(manifestDigest)
	if !ok || err != nil {
		return nil, err
	}
	return f.tree(img)
}

// fetch gets the layers that are missing, from one of the places where the image can be found.
func (f *imageFiles) fetch(ctx context.Context, client *registry.Client, repositories []string, p registry.Platform) (*image.Tree, error) {
	if _, err := f.store.Lease(ctx, inUse, p.ManifestDigest, p.Manifest, p.Config); err != nil {
		return nil, storeFailure(err)
	}
	var first error
	for _, repository := range repositories {
		pull := func() (*image.Image, error) {
			return f.store.Pull(ctx, repositorySource{client, repository}, p.ManifestDigest, p.Manifest, p.Config, f.progress(repository))
		}
		img, err := pull()
		if errors.Is(err, registry.ErrMirror) {
			img, err = pull()
		}
		if err == nil {
			return f.tree(img)
		}
		if first == nil {
			first = err
		}
		if errors.Is(err, image.ErrRefused) || ctx.Err() != nil {
			break
		}
	}
	return nil, storeFailure(first)
}

// progress says once what is fetched.
func (f *imageFiles) progress(repository string) func(image.Progress) {
	var once sync.Once
	return func(p image.Progress) {
		if !p.Cached {
			once.Do(func() { f.c.say("fetching layers of %s", repository) })
		}
	}
}

func (f *imageFiles) tree(img *image.Image) (*image.Tree, error) {
	t, err := f.store.Tree(img)
	if err == nil {
		f.trees = append(f.trees, t)
	}
	return t, err
}

// treeFiles lets a check look into a tree.
type treeFiles struct{ *image.Tree }

// Stat implements release.Files.
func (t treeFiles) Stat(path string) (release.FileInfo, error) {
	f, err := t.Tree.Stat(path)
	return release.FileInfo{Mode: f.Mode, UID: f.UID, GID: f.GID}, err
}

// Open implements release.Files.
func (t treeFiles) Open(path string) (*io.SectionReader, error) {
	f, err := t.Tree.Stat(path)
	if err != nil {
		return nil, err
	}
	if !f.Mode.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrInvalid}
	}
	return t.Tree.Open(f)
}

// getRelease asks the server for a Release with its documents.
func (c *cli) getRelease(ctx context.Context, ref string) (*pinnacev1.Release, error) {
	client, _, err := c.client()
	if err != nil {
		return nil, err
	}
	res, err := client.GetRelease(ctx, connect.NewRequest(&pinnacev1.GetReleaseRequest{Release: ref}))
	if err != nil {
		return nil, err
	}
	return res.Msg.Release, nil
}

// documents are a Release as it is verified.
func documents(r *pinnacev1.Release) release.Documents {
	d := release.Documents{
		ID: r.Id, App: r.App, Image: r.Image, Manifest: r.Manifest, Canonical: r.ManifestCanonical, Source: r.ManifestSource,
	}
	for _, p := range r.Platforms {
		d.Platforms = append(d.Platforms, release.Platform{
			Architecture: p.Architecture, ManifestDigest: p.ManifestDigest, Manifest: p.ImageManifest, Config: p.ImageConfig,
		})
	}
	return d
}

// chooseArchitecture picks the one to look into: the one that was asked for, this machine's, or the first.
func chooseArchitecture(asked string, have []string) (string, error) {
	switch {
	case asked != "" && slices.Contains(have, asked):
		return asked, nil
	case asked != "":
		return "", fail(exitNotFound, "", "both images must be for %s; they have %s in common", asked, orNone(have))
	case slices.Contains(have, runtime.GOARCH):
		return runtime.GOARCH, nil
	case len(have) > 0:
		return have[0], nil
	}
	return "", fail(exitConflict, "", "the two images have no architecture in common")
}
