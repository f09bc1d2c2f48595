package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// writeTree writes a directory as a layer. What overlayfs put there to hide something becomes a whiteout.
func writeTree(w *tar.Writer, dir string) error {
	links := map[[2]uint64]string{}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: no stat", path)
		}
		if info.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0 {
			return w.WriteHeader(&tar.Header{Name: filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)), Typeflag: tar.TypeReg, Mode: 0o644})
		}
		if info.Mode()&fs.ModeSocket != 0 {
			return nil
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		h.Name, h.Format, h.Uname, h.Gname, h.AccessTime, h.ChangeTime = name, tar.FormatPAX, "", "", time.Time{}, time.Time{}
		if info.IsDir() {
			h.Name += "/"
		}
		if id := [2]uint64{st.Dev, st.Ino}; info.Mode().IsRegular() && st.Nlink > 1 {
			if first := links[id]; first != "" {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
				return w.WriteHeader(h)
			}
			links[id] = name
		}
		opaque, err := setXattrs(h, path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if opaque {
			return w.WriteHeader(&tar.Header{Name: name + "/.wh..wh..opq", Typeflag: tar.TypeReg, Mode: 0o644})
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		f, err := os.Open(path) //nolint:gosec // A tree that we made, and nobody else works in.
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
}

func setXattrs(h *tar.Header, path string) (opaque bool, err error) {
	list := make([]byte, 16<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return false, fmt.Errorf("attributes of %s: %w", path, err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return false, fmt.Errorf("attribute %s of %s: %w", name, path, err)
		}
		switch {
		case name == "trusted.overlay.opaque":
			opaque = true
		case strings.HasPrefix(name, "trusted."):
		default:
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+name] = string(value[:n])
		}
	}
	return opaque, nil
}

// writeTop writes the layer over the others, with what only layers have: whiteouts, an opaque directory,
// attributes, links, nodes, flips of type, ids and times of all sizes. version is in its files.
func writeTop(w *tar.Writer, version string) error {
	when := time.Unix(1700000000, 123456789)
	put := func(h tar.Header, content string) error {
		h.ModTime, h.Format, h.Size = when, tar.FormatPAX, int64(len(content))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err := io.WriteString(w, content)
		return err
	}
	random := make([]byte, 0, 700<<10)
	for seed := sha256.Sum256([]byte(version)); len(random) < 700<<10; seed = sha256.Sum256(seed[:]) {
		random = append(random, seed[:]...)
	}
	return errors.Join(
		put(tar.Header{Name: "srv/app/.wh.package-lock.json"}, ""),
		put(tar.Header{Name: "srv/app/node_modules/.wh.rxjs"}, ""),
		put(tar.Header{Name: "srv/app/node_modules/lodash/", Typeflag: tar.TypeDir, Mode: 0o755}, ""),
		put(tar.Header{Name: "srv/app/node_modules/lodash/.config"}, "before the marker"),
		put(tar.Header{Name: "srv/app/node_modules/lodash/.wh..wh..opq"}, ""),
		put(tar.Header{Name: "srv/app/node_modules/lodash/lodash.js"}, "module.exports = {}\n"),
		put(tar.Header{Name: "srv/app/server.js", Mode: 0o755}, "// "+version+"\n"+string(random)),
		put(tar.Header{Name: "srv/app/bundle.js"}, strings.Repeat("console.log('"+version+"');\n", 16<<10)),
		put(tar.Header{Name: "srv/app/caps", Mode: 0o755, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			"SCHILY.xattr.user.version":        "1",
		}}, "#!/bin/sh\n"),
		put(tar.Header{Name: "srv/app/suid", Mode: 0o4755}, "#!/bin/sh\n"),
		put(tar.Header{Name: "srv/app/owned", Uid: 123456, Gid: 4000000}, "x"),
		put(tar.Header{Name: "srv/app/first"}, "linked"),
		put(tar.Header{Name: "srv/app/second", Typeflag: tar.TypeLink, Linkname: "srv/app/first"}, ""),
		put(tar.Header{Name: "srv/app/current", Typeflag: tar.TypeSymlink, Linkname: "server.js", Mode: 0o777}, ""),
		put(tar.Header{Name: "srv/app/fifo", Typeflag: tar.TypeFifo}, ""),
		put(tar.Header{Name: "srv/app/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, ""),
		put(tar.Header{Name: "etc/issue/", Typeflag: tar.TypeDir, Mode: 0o755}, ""), // was a file
		put(tar.Header{Name: "etc/issue/text"}, "now a directory"),
		put(tar.Header{Name: "opt"}, "now a file"),
		put(tar.Header{Name: "var/implied/parents/file"}, "x"),
	)
}

// A layerFile is one layer in all forms.
type layerFile struct {
	tar     string // path
	diffID  string
	size    int64
	entries int
	blobs   map[string]*blob
}

type blob struct {
	path   string
	digest string
	size   int64
	layer  *layerFile
	media  types.MediaType
}

var variants = map[string]struct {
	media    types.MediaType
	compress func(io.Writer) (io.WriteCloser, error)
}{
	"gzip": {types.OCILayer, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, 6) }},
	"zstd": {types.OCILayerZStd, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }},
}

// makeLayer writes a layer and its blobs, unless an earlier run left them.
func makeLayer(ctx context.Context, path string, write func(*tar.Writer) error) (*layerFile, error) {
	l := &layerFile{tar: path, blobs: map[string]*blob{}}
	if _, err := os.Stat(path); err != nil {
		if err := writeFile(path, func(w io.Writer) error {
			t := tar.NewWriter(w)
			return errors.Join(write(t), t.Close())
		}); err != nil {
			return nil, err
		}
	}
	for variant, v := range variants {
		b := &blob{path: path + "." + variant, layer: l, media: v.media}
		if _, err := os.Stat(b.path); err != nil {
			if err := writeFile(b.path, func(w io.Writer) error {
				c, err := v.compress(w)
				if err != nil {
					return err
				}
				f, err := os.Open(path)
				if err != nil {
					return err
				}
				defer f.Close()
				_, err = io.Copy(c, f)
				return errors.Join(err, c.Close())
			}); err != nil {
				return nil, err
			}
		}
		var err error
		if b.digest, b.size, err = digestFile(b.path); err != nil {
			return nil, err
		}
		l.blobs[variant] = b
	}
	var err error
	if l.diffID, l.size, err = digestFile(path); err != nil {
		return nil, err
	}
	l.entries, err = countEntries(path)
	return l, errors.Join(err, ctx.Err())
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path + ".part")
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func digestFile(path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	return sumOf(sum), n, err
}

func sumOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

func countEntries(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for n := 0; ; n++ {
		if _, err := r.Next(); errors.Is(err, io.EOF) {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}

// A blob is a layer for the library that pushes it.
var _ v1.Layer = (*blob)(nil)

func (b *blob) Digest() (v1.Hash, error)             { return v1.NewHash(b.digest) }
func (b *blob) DiffID() (v1.Hash, error)             { return v1.NewHash(b.layer.diffID) }
func (b *blob) Compressed() (io.ReadCloser, error)   { return os.Open(b.path) }
func (b *blob) Uncompressed() (io.ReadCloser, error) { return os.Open(b.layer.tar) }
func (b *blob) Size() (int64, error)                 { return b.size, nil }
func (b *blob) MediaType() (types.MediaType, error)  { return b.media, nil }
