package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// module is one module, decompressed.
type module struct {
	name  string // as in /proc/modules: with underscores
	phase phase
	data  []byte
}

// moduleTree indexes the modules of one release. It needs no modules.dep, which packages do not carry
// (depmod makes it when they are installed): every module names what it depends on itself.
type moduleTree struct {
	release string
	files   map[string]string // module name -> path
	builtin map[string]bool
}

// openModules indexes dir. A directory that does not exist holds no modules.
func openModules(release, dir string) (*moduleTree, error) {
	t := &moduleTree{release: release, files: map[string]string{}, builtin: map[string]bool{}}
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(d.Name()); ok && d.Type().IsRegular() && t.files[name] == "" {
			t.files[name] = p
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read modules: %w", err)
	}
	list, err := readFile(filepath.Join(dir, "modules.builtin"), maxConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.FieldsSeq(string(list)) {
		if name, ok := moduleName(path.Base(line)); ok {
			t.builtin[name] = true
		}
	}
	return t, nil
}

// moduleName returns the module's name when file is a module's, compressed or not. The kernel takes - and _
// for the same.
func moduleName(file string) (string, bool) {
	for _, ext := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if name, ok := strings.CutSuffix(file, ext); ok {
			return strings.ReplaceAll(name, "-", "_"), true
		}
	}
	return "", false
}

// resolve returns the modules that config leaves to be loaded, each after what it depends on. What is loaded
// in some VMs only does not count as loaded for other phases, so that a module can be in more than one.
func (t *moduleTree) resolve(config map[string]string) ([]module, error) {
	first := resolver{tree: t, state: map[string]state{}}
	if err := first.addAll(config, early); err != nil {
		return nil, err
	}
	out := first.out
	for _, ph := range []phase{vsock, late, rng} {
		r := resolver{tree: t, state: maps.Clone(first.state)}
		if err := r.addAll(config, ph); err != nil {
			return nil, err
		}
		out = append(out, r.out...)
	}
	return out, nil
}

// addAll adds the modules of one phase.
func (r *resolver) addAll(config map[string]string, ph phase) error {
	for _, o := range options {
		if o.phase != ph || config[o.name] != "m" || (o.optional && !r.tree.has(o.module)) {
			continue
		}
		if err := r.add(o.module, ph); err != nil {
			return fmt.Errorf("module %s (for %s): %w", o.module, o.purpose, err)
		}
	}
	return nil
}

func (t *moduleTree) has(name string) bool { return t.builtin[name] || t.files[name] != "" }

type state int

const (
	unseen state = iota
	open         // its dependencies are being added
	done
)

type resolver struct {
	tree  *moduleTree
	state map[string]state
	out   []module
}

func (r *resolver) add(name string, ph phase) error {
	name = strings.ReplaceAll(name, "-", "_")
	if r.tree.builtin[name] {
		return nil
	}
	switch r.state[name] {
	case done:
		return nil
	case open:
		return fmt.Errorf("depends on itself through %s", name)
	case unseen:
	}
	r.state[name] = open
	file, ok := r.tree.files[name]
	if !ok {
		return fmt.Errorf("%s is neither built in nor among the modules of kernel %s; unpack the whole package", name, r.tree.release)
	}
	data, err := readModule(file)
	if err != nil {
		return err
	}
	depends, err := r.tree.inspect(data)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, dep := range depends {
		if err := r.add(dep, ph); err != nil {
			return fmt.Errorf("needs %s: %w", dep, err)
		}
	}
	r.state[name] = done
	r.out = append(r.out, module{name, ph, data})
	return nil
}

// inspect reads what a module says of itself: what it depends on, and which release it is for.
func (t *moduleTree) inspect(data []byte) (depends []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("not a kernel module: %w", err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("not a kernel module: it has no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read .modinfo: %w", err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "depends":
			depends = strings.FieldsFunc(value, func(r rune) bool { return r == ',' })
		case "vermagic":
			if release, _, _ := strings.Cut(value, " "); release != t.release {
				return nil, fmt.Errorf("is a module of kernel %s, not %s", release, t.release)
			}
		}
	}
	return depends, nil
}

// readModule reads and decompresses. Init could leave the decompression to the kernel, but not every kernel
// can, and doing it once here costs less than in every guest.
func readModule(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := io.Reader(f)
	switch filepath.Ext(file) {
	case ".xz":
		r, err = xz.NewReader(f)
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1)); err == nil {
			defer d.Close()
		}
		r = d
	case ".gz":
		r, err = gzip.NewReader(f)
	}
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", file, err)
	}
	data, err := readAll(r, maxModule)
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", file, err)
	}
	return data, nil
}
