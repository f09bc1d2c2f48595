package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// LoadOrder is where in the initramfs init finds which modules to load: a line "<phase> <file>" for each, in
// order, the file in the same directory. Init loads the early ones before it opens the control channel, the
// late ones while it waits for its configuration, and those of the phases vsock and rng where the VM has such a
// device. A file may be in more than one phase; loading it again does nothing. The list may be empty.
const LoadOrder = "/lib/modules/load"

// Kernel is what a VM boots, with the hashes that say exactly what that was.
type Kernel struct {
	Release         string
	Path            string // kernel image
	SHA256          string // of the kernel image, in hex
	Initramfs       string
	InitramfsSHA256 string // in hex
}

// Prepare builds the initramfs of a kernel that passed Check, with init (a static executable) as PID 1, and
// keeps it in cacheDir under the hash of its content. The same kernel and init make the same bytes on
// every host. Older files in cacheDir stay; VMs may be running from them.
func (s Source) Prepare(cacheDir string, init []byte) (*Kernel, error) {
	k, err := s.prepare(cacheDir, init)
	if err != nil {
		return nil, fmt.Errorf("prepare kernel %s: %w", s.Release, err)
	}
	return k, nil
}

func (s Source) prepare(cacheDir string, init []byte) (*Kernel, error) {
	if !bytes.HasPrefix(init, []byte("\x7fELF")) {
		return nil, errors.New("there is no pinnace-init in this binary; build it with make build")
	}
	config, err := s.readConfig()
	if err != nil {
		return nil, err
	}
	tree, err := openModules(s.Release, s.modulesPath())
	if err != nil {
		return nil, err
	}
	modules, err := tree.resolve(config)
	if err != nil {
		return nil, err
	}
	image, err := readFile(s.Image(), maxImage)
	if err != nil {
		return nil, err
	}
	for i := range modules {
		modules[i].data = lean(modules[i].data, config["MODULE_SIG_FORCE"] == "y")
	}
	initramfs := build(init, modules)
	k := &Kernel{Release: s.Release, Path: s.Image(), SHA256: hash(image), InitramfsSHA256: hash(initramfs)}
	k.Initramfs = filepath.Join(cacheDir, "initramfs-"+k.InitramfsSHA256+".cpio")
	if err := keep(k.Initramfs, initramfs); err != nil {
		return nil, err
	}
	return k, nil
}

// build lays out the initramfs. It is not compressed: unpacking would cost every boot more than the page
// cache saves.
func build(init []byte, modules []module) []byte {
	var a archive
	for _, dir := range []string{"dev", "lib", "lib/modules", "newroot", "proc", "run", "sys", "tmp"} {
		a.dir(dir)
	}
	a.char("dev/console", 0o600, 5, 1) // the kernel opens it for init before devtmpfs is mounted
	a.file("init", 0o755, init)
	var order strings.Builder
	packed := map[string]bool{}
	for _, m := range modules {
		if !packed[m.name] {
			a.file("lib/modules/"+m.name+".ko", 0o644, m.data)
			packed[m.name] = true
		}
		fmt.Fprintf(&order, "%s %s.ko\n", m.phase, m.name)
	}
	a.file(strings.TrimPrefix(LoadOrder, "/"), 0o644, []byte(order.String()))
	return a.finish()
}

// keep makes sure that path, which has the hash of data in its name, holds data. A file that is there
// already is read and compared, so that one damaged on the disk is replaced rather than booted.
func keep(path string, data []byte) error {
	if there, err := readFile(path, int64(len(data))); err == nil && bytes.Equal(there, data) {
		return nil
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return durable.WriteFile(path, data, 0o644)
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
