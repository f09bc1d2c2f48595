package kernel

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

const maxOrigin = 64 << 10

// An Origin says where a kernel came from, as the script that made its folder wrote it down.
type Origin struct {
	// Package is the Debian package that it is from, or from whose source it was built; empty when nobody wrote it down.
	Package string
	// Version is that package's.
	Version string
	// Built tells that it was built on this machine.
	Built bool
}

// String says it in words.
func (o Origin) String() string {
	switch {
	case o.Package == "":
		return "unknown"
	case o.Built:
		return "built from " + o.Package + " " + o.Version
	}
	return o.Package + " " + o.Version
}

// Origin reads where the kernel came from. A kernel that says nothing of that is as good as another.
func (s Source) Origin() Origin {
	b, err := readFile(filepath.Join(s.Dir, "origin"), maxOrigin)
	if err != nil {
		return Origin{}
	}
	var o Origin
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "package":
			o.Package = value
		case "built":
			o.Package, o.Built = value, true
		case "version":
			o.Version = value
		}
	}
	return o
}

// Usage is what the kernel's folder takes, in bytes, and the sha256 of its image, in hex.
func (s Source) Usage() (size int64, imageSHA256 string, err error) {
	err = filepath.WalkDir(s.Dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil {
		return 0, "", fmt.Errorf("measure kernel %s: %w", s.Release, err)
	}
	image, err := readFile(s.Image(), maxImage)
	if err != nil {
		return 0, "", fmt.Errorf("read kernel %s: %w", s.Release, err)
	}
	return size, hash(image), nil
}
