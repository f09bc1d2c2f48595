package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

const fakeRelease = "6.12.1-test"

var fakeInit = []byte("\x7fELF this is init")

// fake describes a kernel folder; write makes it.
type fake struct {
	release string
	image   []byte
	config  map[string]string
	files   map[string][]byte // below modules/
}

// newFake is a kernel that passes Check, with modules like those of Debian's cloud kernel: some built in,
// some with dependencies, compressed in every way.
func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{
		release: fakeRelease,
		image:   fakeBzImage(fakeRelease+" (someone) #1 SMP", xzPack(t, fakeVmlinux())),
		config:  map[string]string{archOption[runtime.GOARCH]: "y"},
		files: map[string][]byte{
			"modules.builtin":                  []byte("kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio-ring.ko\n"),
			"kernel/char/virtio_console.ko":    fakeModule("virtio,virtio_ring"),
			"kernel/virtio/virtio_mmio.ko.xz":  xzPack(t, fakeModule("virtio")),
			"kernel/block/virtio_blk.ko.zst":   zstdPack(t, fakeModule("")),
			"kernel/fs/erofs/erofs.ko.gz":      gzipPack(t, fakeModule("lz-lib,libcrc32c")),
			"kernel/fs/overlayfs/overlay.ko":   fakeModule(""),
			"kernel/net/virtio_net.ko.xz":      xzPack(t, fakeModule("net_failover")),
			"kernel/net/net_failover.ko.xz":    xzPack(t, fakeModule("failover")),
			"kernel/net/failover.ko.xz":        xzPack(t, fakeModule("")),
			"kernel/lib/lz_lib.ko":             fakeModule("libcrc32c"),
			"kernel/lib/libcrc32c.ko":          fakeModule(""),
			"kernel/drivers/unrelated.ko":      []byte("never read"),
			"kernel/drivers/notamodule.ko.txt": []byte("never read"),
		},
	}
	for _, o := range options {
		f.config[o.name] = "y"
	}
	for _, name := range []string{"VIRTIO_CONSOLE", "VIRTIO_MMIO", "VIRTIO_BLK", "EROFS_FS", "OVERLAY_FS", "VIRTIO_NET"} {
		f.config[name] = "m"
	}
	return f
}

func (f *fake) write(t *testing.T, dir string) Source {
	t.Helper()
	s := Source{Release: f.release, Dir: filepath.Join(dir, f.release)}
	var config strings.Builder
	config.WriteString("#\n# Automatically generated file; DO NOT EDIT.\n")
	for _, name := range slices.Sorted(maps.Keys(f.config)) {
		if v := f.config[name]; v == "" {
			config.WriteString("# CONFIG_" + name + " is not set\n")
		} else {
			config.WriteString("CONFIG_" + name + "=" + v + "\n")
		}
	}
	files := map[string][]byte{"vmlinuz": f.image, "config": []byte(config.String())}
	for name, data := range f.files {
		files["modules/"+name] = data
	}
	for name, data := range files {
		path := filepath.Join(s.Dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// fakeModule is a relocatable ELF file with the one section that matters.
func fakeModule(depends string) []byte {
	return fakeModuleFor(fakeRelease, depends)
}

func fakeModuleFor(release, depends string) []byte {
	info := "license=GPL\x00depends=" + depends + "\x00vermagic=" + release + " SMP mod_unload\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	const ehdr, shdr = 64, 64
	var b bytes.Buffer
	le := binary.LittleEndian
	write := func(v any) {
		if err := binary.Write(&b, le, v); err != nil {
			panic(err)
		}
	}
	write(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1,
		Shoff: ehdr, Ehsize: ehdr, Shentsize: shdr, Shnum: 3, Shstrndx: 2,
	})
	data := uint64(ehdr + 3*shdr)
	write(elf.Section64{})
	write(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: data, Size: uint64(len(info))})
	write(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: data + uint64(len(info)), Size: uint64(len(names))})
	b.WriteString(info + names)
	return b.Bytes()
}

const (
	loaded  = "the part that a VMM loads"
	symbols = "symbols that nobody needs\x00"
)

// fakeVmlinux has one loaded segment, and section headers behind it that stripping drops.
func fakeVmlinux() []byte {
	const ehdr, phdr = 64, 56
	var b bytes.Buffer
	write := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	body := uint64(ehdr + phdr)
	shoff := body + uint64(len(loaded)+len(symbols))
	write(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1,
		Phoff: ehdr, Ehsize: ehdr, Phentsize: phdr, Phnum: 1, Shoff: shoff, Shentsize: 64, Shnum: 2, Shstrndx: 1,
	})
	write(elf.Prog64{Type: uint32(elf.PT_LOAD), Off: body, Filesz: uint64(len(loaded)), Memsz: uint64(len(loaded))})
	b.WriteString(loaded + symbols)
	write(elf.Section64{})
	write(elf.Section64{Type: uint32(elf.SHT_STRTAB), Off: shoff - 1, Size: 1}) // one empty name
	return b.Bytes()
}

// fakeBzImage puts the payload behind a boot header. The payload gets the size word that the kernel's build
// appends, except after gzip.
func fakeBzImage(version string, payload []byte) []byte {
	const setupSects, payloadAt = 1, 64
	if !bytes.HasPrefix(payload, []byte{0x1f, 0x8b}) {
		payload = append(bytes.Clone(payload), 1, 2, 3, 4)
	}
	b := make([]byte, (setupSects+1)*sector+payloadAt+len(payload))
	le := binary.LittleEndian
	b[offSetupSects] = setupSects
	copy(b[offMagic:], "HdrS")
	le.PutUint16(b[offProtocol:], 0x20f)
	le.PutUint16(b[offVersion:], 0x100)
	copy(b[0x100+sector:], version)
	le.PutUint32(b[offPayload:], payloadAt)
	le.PutUint32(b[offPayloadLength:], uint32(len(payload)))
	copy(b[(setupSects+1)*sector+payloadAt:], payload)
	return b
}

func xzPack(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	return packed(t, &out, w, err, b)
}

func zstdPack(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	return packed(t, &out, w, err, b)
}

func gzipPack(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	return packed(t, &out, gzip.NewWriter(&out), nil, b)
}

// lz4Pack writes the legacy format, which is what the kernel's build uses.
func lz4Pack(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := lz4.NewWriter(&out)
	return packed(t, &out, w, w.Apply(lz4.LegacyOption(true)), b)
}

func packed(t *testing.T, out *bytes.Buffer, w interface {
	Write([]byte) (int, error)
	Close() error
}, err error, b []byte,
) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
