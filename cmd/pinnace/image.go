package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/image"
)

// leaseOwner is who gives up the leases of this command.
const (
	leaseOwner = "cli"
	leaseKept  = "kept" // for a while, by image pull
)

// imageStore says which store the image commands work on.
type imageStore struct {
	data  string
	store string
	cache bool

	dataGiven bool
}

func (c *cli) newImage() *cobra.Command {
	var where imageStore
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Pull, inspect, verify and remove images of this machine",
		Long: `Image works on the images that this machine keeps; it needs no server. On a host with an agent
that is the agent's store, DATA_DIR/agent/images, which takes root; elsewhere it is your own
cache. --cache, --data-dir and --store choose another. Agents and commands may use a store at
the same time.

An image is named by the digest of its manifest or the beginning of it, or by a reference to
a registry.`,
		Example: `  pinnace image pull 127.0.0.1:5000/api:v1   have it before it is deployed
  pinnace image ls
  pinnace image df`,
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&where.data, "data-dir", "/var/lib/pinnace", "the agent whose store it is")
	flags.StringVar(&where.store, "store", "", "directory of the store")
	flags.BoolVar(&where.cache, "cache", false, "your own cache")
	cmd.PersistentPreRun = func(cmd *cobra.Command, _ []string) { where.dataGiven = cmd.Flags().Changed("data-dir") }
	cmd.AddCommand(
		c.newImagePull(&where), c.newImageInspect(&where), c.newImageList(&where), c.newImageVerify(&where), c.newImageGC(&where),
		c.newImageDF(&where))
	return cmd
}

// dir is the directory of the store.
func (w *imageStore) dir(c *cli) (string, error) {
	if w.dataGiven && w.store != "" || w.dataGiven && w.cache || w.store != "" && w.cache {
		return "", fail(exitInvalid, "give one of them", "--data-dir, --store and --cache each name another store")
	}
	if w.store != "" {
		return w.store, nil
	}
	cache := c.cacheDir()
	if w.cache && cache == "" {
		return "", fail(exitInvalid, "set HOME or XDG_CACHE_HOME, or use --store", "there is no place for a cache")
	}
	if w.cache {
		return filepath.Join(cache, "images"), nil
	}
	agent := filepath.Join(w.data, "agent", "images")
	_, err := os.Stat(agent)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "", fail(exitDenied, "run it with sudo, or use --cache for your own images", "%w", err)
	case err == nil || w.dataGiven || cache == "":
		return agent, nil
	case errors.Is(err, fs.ErrNotExist):
		return filepath.Join(cache, "images"), nil
	}
	return "", err
}

// open opens the store. When create is false, it must be there.
func (w *imageStore) open(c *cli, create bool) (*image.Store, string, error) {
	dir, err := w.dir(c)
	if err != nil {
		return nil, "", err
	}
	if _, err := os.Stat(dir); err != nil && !create {
		return nil, "", fail(exitNotFound, "pinnace image pull makes one; --cache, --data-dir and --store say where", "there is no image store: %w", err)
	}
	if create && w.store == "" {
		// The directory above is what keeps others out.
		if err := durable.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			return nil, "", storeFailure(err)
		}
	}
	s, err := image.Open(dir)
	return s, dir, storeFailure(err)
}

// with opens the store for as long as do runs.
func (w *imageStore) with(c *cli, create bool, do func(s *image.Store, dir string) error) error {
	s, dir, err := w.open(c, create)
	if err != nil {
		return err
	}
	return storeFailure(errors.Join(do(s, dir), s.Close()))
}

// storeFailure gives the errors of a store their status.
func storeFailure(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fail(exitDenied, "run it with sudo, or use --cache for your own images", "%w", err)
	case errors.Is(err, image.ErrNotFound):
		return fail(exitNotFound, "pinnace image ls shows what is there", "%w", err)
	case errors.Is(err, image.ErrNoSpace):
		return fail(exitInvalid, "pinnace image df shows what takes the room", "%w", err)
	case errors.Is(err, image.ErrRefused), errors.Is(err, image.ErrCorrupt):
		return fail(exitInvalid, "", "%w", err)
	}
	return err
}

var digestPrefix = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{6,64})$`)

// find gives the images of the store that a name means: the digest of a manifest or the beginning of it, or a
// reference, for which the registry is asked unless it ends in the digest of an image that is there.
func (c *cli) find(ctx context.Context, u *image.Usage, name string) ([]image.StoredImage, error) {
	prefix := digestPrefix.FindStringSubmatch(name)
	if prefix == nil {
		if _, digest, pinned := strings.Cut(name, "@"); pinned {
			if found := startingWith(u, digest); len(found) == 1 {
				return found, nil
			}
		}
		img, err := c.resolve(ctx, name)
		if err != nil {
			return nil, err
		}
		var found []image.StoredImage
		for _, p := range img.Platforms {
			found = append(found, startingWith(u, p.ManifestDigest)...)
		}
		if len(found) == 0 {
			return nil, fail(exitNotFound, "pinnace image pull fetches it", "%s, which is %s now, is not in the store", name, shortDigest(img.Digest))
		}
		return found, nil
	}
	found := startingWith(u, "sha256:"+prefix[1])
	switch {
	case len(found) == 0:
		return nil, fail(exitNotFound, "pinnace image ls shows what is there", "no image in the store begins with %s", name)
	case len(found) > 1:
		return nil, fail(exitInvalid, "write more of the digest", "%d images in the store begin with %s", len(found), name)
	}
	return found, nil
}

func startingWith(u *image.Usage, prefix string) []image.StoredImage {
	return slices.DeleteFunc(slices.Clone(u.Images), func(i image.StoredImage) bool { return !strings.HasPrefix(i.Digest, prefix) })
}

// words are the images of the store, for completion.
func (w *imageStore) words(c *cli) completion {
	return func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		w.dataGiven = cmd.Flags().Changed("data-dir")
		var words []cobra.Completion
		_ = w.with(c, false, func(s *image.Store, _ string) error {
			u, err := s.Usage()
			if err != nil {
				return err
			}
			for _, i := range u.Images {
				words = append(words, cobra.CompletionWithDesc(shortDigest(i.Digest), byteSize(i.Bytes)+" "+holders(i.Leases)))
			}
			return nil
		})
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// leaseInfo is a lease as it is shown.
type leaseInfo struct {
	Owner   string     `json:"owner"`
	Kind    string     `json:"kind"`
	Name    string     `json:"name"`
	Expires *time.Time `json:"expires_at,omitempty"`
}

func leaseInfos(leases []image.Lease) []leaseInfo {
	infos := []leaseInfo{}
	for _, l := range leases {
		info := leaseInfo{Owner: l.Owner, Kind: l.Kind, Name: l.Name}
		if !l.Expires.IsZero() {
			info.Expires = &l.Expires
		}
		infos = append(infos, info)
	}
	return infos
}

// holders says in one cell who holds an image.
func holders(leases []image.Lease) string {
	if len(leases) == 0 {
		return "nobody"
	}
	var names []string
	for _, l := range leases {
		name := l.Kind
		if l.Name != "" {
			name += " " + printable(l.Name)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if more := len(names) - 3; more > 0 {
		names = append(names[:3], "and "+plural(more, "more"))
	}
	return strings.Join(names, ", ")
}

// ago is how long something is past, in the precision that people want of days.
func ago(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return plural(int(d.Minutes()), "minute") + " ago"
	case d < 48*time.Hour:
		return plural(int(d.Hours()), "hour") + " ago"
	}
	return plural(int(d.Hours()/24), "day") + " ago"
}
