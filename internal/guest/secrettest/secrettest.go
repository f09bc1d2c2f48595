// Package secrettest looks for secrets where none may be: in files, in what processes were started with, in any stream,
// in every form in which a careless program could have written them. It is imported by tests only.
package secrettest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Finder looks for one secret.
type Finder struct {
	forms   []form
	longest int
}

type form struct {
	name string
	text []byte
}

// For makes a Finder for a secret, which should be long and odd enough to be nowhere by chance.
func For(secret string) *Finder {
	f := &Finder{}
	add := func(name, text string) {
		for _, known := range f.forms {
			if string(known.text) == text {
				return
			}
		}
		f.forms = append(f.forms, form{name, []byte(text)})
		f.longest = max(f.longest, len(text))
	}
	add("raw", secret)
	for _, alphabet := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			add("base64", base64Of(alphabet, secret, before))
		}
	}
	digits := hex.EncodeToString([]byte(secret))
	add("hex", digits)
	add("hex", strings.ToUpper(digits))
	for _, escaped := range []string{url.QueryEscape(secret), url.PathEscape(secret)} {
		add("URL-escaped", escaped)
		add("URL-escaped", lowerEscapes(escaped))
	}
	if quoted, err := json.Marshal(secret); err == nil {
		add("JSON", string(quoted[1:len(quoted)-1]))
	}
	add("quoted", strings.Trim(fmt.Sprintf("%q", secret), `"`))
	add("as numbers", strings.Trim(fmt.Sprintf("%d", []byte(secret)), "[]"))
	return f
}

// base64Of is how a secret looks within the base64 of a longer text, with so many bytes (modulo 3) before it: without
// the characters that hold bits of its neighbours.
func base64Of(alphabet *base64.Encoding, secret string, before int) string {
	text := alphabet.EncodeToString([]byte(strings.Repeat("\x00", before) + secret))
	text = text[(before*8+5)/6:]
	if (before+len(secret))%3 != 0 {
		text = text[:len(text)-1]
	}
	return text
}

// lowerEscapes writes the digits of %XX small.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

// In returns in which forms the secret is in what r gives.
func (f *Finder) In(r io.Reader) ([]string, error) {
	var found []string
	seen := map[string]bool{}
	buf := make([]byte, 1<<20+f.longest)
	kept := 0
	for {
		n, err := io.ReadFull(r, buf[kept:])
		chunk := buf[:kept+n]
		for _, form := range f.forms {
			if !seen[form.name] && bytes.Contains(chunk, form.text) {
				seen[form.name] = true
				found = append(found, form.name)
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		// The beginning of a form may be at the end of this chunk.
		kept = copy(buf, chunk[len(chunk)-f.longest+1:])
	}
}

// Below returns what of the files below a directory has the secret in it, or in its name.
func (f *Finder) Below(dir string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone in the meantime
		}
		if err != nil {
			return err
		}
		note := func(where string, r io.Reader) error {
			forms, err := f.In(r)
			for _, form := range forms {
				found = append(found, fmt.Sprintf("%s (%s, %s)", path, where, form))
			}
			return err
		}
		if err := note("name", strings.NewReader(d.Name())); err != nil {
			return err
		}
		switch {
		case d.Type() == fs.ModeSymlink:
			if target, err := os.Readlink(path); err == nil {
				return note("target", strings.NewReader(target))
			}
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		file, err := os.Open(path) //nolint:gosec // a test looks at what it made itself
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer file.Close()
		return note("content", &dataOf{file: file})
	})
	return found, err
}

// dataOf reads a file without its holes, which have nothing in them: images of disks are mostly that.
type dataOf struct {
	file *os.File
	left int64 // until the next hole
}

func (d *dataOf) Read(b []byte) (int, error) {
	if d.left == 0 {
		at, err := d.file.Seek(0, io.SeekCurrent)
		if errors.Is(err, unix.ESPIPE) {
			return 0, io.EOF // a namespace that is mounted there, which has no content
		}
		if err != nil {
			return 0, err
		}
		data, err := d.file.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ESPIPE) {
			return 0, io.EOF // the second is a namespace, which only looks like a file
		}
		if err != nil {
			return 0, err
		}
		hole, err := d.file.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return 0, err
		}
		if _, err := d.file.Seek(data, io.SeekStart); err != nil {
			return 0, err
		}
		d.left = hole - data
	}
	n, err := d.file.Read(b[:min(int64(len(b)), d.left)])
	d.left -= int64(n)
	return n, err
}

// InProcesses returns which processes of this machine, of those that the caller may look at, have the secret in their
// arguments, their environment or the names of files that they have open.
func (f *Finder) InProcesses() ([]string, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, dir := range dirs {
		for _, name := range []string{"cmdline", "environ", "comm"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				continue // it has ended, or is none of ours
			}
			forms, err := f.In(bytes.NewReader(b))
			if err != nil {
				return found, err
			}
			for _, form := range forms {
				found = append(found, fmt.Sprintf("%s (%s)", filepath.Join(dir, name), form))
			}
		}
	}
	return found, nil
}
