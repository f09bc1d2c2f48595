package main

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptKernel makes the folder of a kernel that can be booted nowhere, with everything built in that guests need but the
// options that are named: kernel DIR RELEASE [OPTION...]
func scriptKernel(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: kernel DIR RELEASE [OPTION...]")
	}
	ts.Check(makeFakeKernel(ts.MkAbs(args[0]), args[1], args[2:]))
}

func writeFakeKernel(t *testing.T, dir, release string, without []string) {
	t.Helper()
	if err := makeFakeKernel(dir, release, without); err != nil {
		t.Fatal(err)
	}
}

func makeFakeKernel(dir, release string, without []string) error {
	config := map[string]string{"amd64": "CONFIG_X86_64=y\n", "arm64": "CONFIG_ARM64=y\n"}[runtime.GOARCH]
	for _, option := range []string{
		"VIRTIO_CONSOLE", "VIRTIO_MMIO", "VIRTIO_BLK", "EROFS_FS", "OVERLAY_FS", "EXT4_FS", "VIRTIO_NET", "VIRTIO_VSOCKETS",
		"HW_RANDOM_VIRTIO", "EFI_PARTITION", "BLK_DEV_INITRD", "DEVTMPFS", "PROC_FS", "SYSFS", "TMPFS", "MEMCG", "CGROUP_PIDS",
		"UNIX", "INET", "ACPI",
	} {
		if !slices.Contains(without, option) {
			config += "CONFIG_" + option + "=y\n"
		}
	}
	dir = filepath.Join(dir, release)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o644); err != nil {
		return err
	}
	image, err := fakeBzImage(release)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "vmlinuz"), image, 0o644)
}

// fakeBzImage is an image by the boot protocol of x86 (Documentation/arch/x86/boot.rst of the kernel) with an ELF file of
// nothing but a header for its payload.
func fakeBzImage(release string) ([]byte, error) {
	var vmlinux, payload bytes.Buffer
	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	segment := elf.Prog64{Type: uint32(elf.PT_LOAD), Off: 120, Filesz: 8, Memsz: 8}
	for _, part := range []any{header, segment, []byte("vmlinux!")} {
		if err := binary.Write(&vmlinux, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	w := gzip.NewWriter(&payload)
	if _, err := w.Write(vmlinux.Bytes()); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	const sector, setupSectors = 512, 1
	b := make([]byte, (setupSectors+1)*sector)
	b[0x1f1] = setupSectors
	copy(b[0x202:], "HdrS")
	le := binary.LittleEndian
	le.PutUint16(b[0x206:], 0x20f) // protocol 2.15
	le.PutUint16(b[0x20e:], 0x100) // where the version is, less a sector
	copy(b[0x100+sector:], release+" (nobody)\x00")
	le.PutUint32(b[0x24c:], uint32(payload.Len()))
	return append(b, payload.Bytes()...), nil
}

// TestCompleteKernels: Tab offers the kernels that can be used.
func TestCompleteKernels(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the images are of amd64")
	}
	dir := t.TempDir()
	writeFakeKernel(t, dir, "6.12.1-test", nil)
	writeFakeKernel(t, dir, "6.13.0-unfit", []string{"EROFS_FS"})
	var out bytes.Buffer
	c := &cli{stdin: strings.NewReader(""), stdout: &out, stderr: &out, getenv: func(string) string { return "" }}
	if status := c.run(t.Context(), []string{"__complete", "kernel", "use", "--kernels", dir, ""}); status != exitOK {
		t.Errorf("status %d", status)
	}
	if got := out.String(); !strings.Contains(got, "6.12.1-test\tunknown\n") || !strings.Contains(got, "newest\t") || strings.Contains(got, "6.13.0") {
		t.Errorf("got %s", got)
	}
}
