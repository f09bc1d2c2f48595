package kernel

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestFindPrefersNewestThatFits(t *testing.T) {
	dir := t.TempDir()
	for _, release := range []string{"6.9.3-test", "6.10.1-test", "6.1.0-50-test", "7.0.0-broken"} {
		f := newFake(t)
		f.release = release
		f.image = fakeBzImage(release+" (someone)", []byte("0123456789"))
		if strings.HasSuffix(release, "broken") {
			f.config["EROFS_FS"] = ""
		}
		f.write(t, dir)
	}
	if err := os.MkdirAll(filepath.Join(dir, ".tmp-x"), 0o755); err != nil {
		t.Fatal(err)
	}
	all, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range all {
		got = append(got, s.Release)
	}
	if want := "7.0.0-broken 6.10.1-test 6.9.3-test 6.1.0-50-test"; strings.Join(got, " ") != want {
		t.Errorf("List: got %v, want %s", got, want)
	}
	s, err := Find(dir)
	if err != nil || s.Release != "6.10.1-test" {
		t.Errorf("Find: got %v, %v", s, err)
	}
}

func TestFindSaysWhyNoneFits(t *testing.T) {
	dir := t.TempDir()
	for _, where := range []string{dir, filepath.Join(dir, "absent")} {
		if _, err := Find(where); !errors.Is(err, ErrNoKernel) || !strings.Contains(err.Error(), "get-kernel.sh") {
			t.Errorf("no kernels: got %v", err)
		}
	}
	f := newFake(t)
	f.release = "6.1.0-50-cloud-amd64"
	f.write(t, dir)
	f = newFake(t)
	f.config["OVERLAY_FS"] = ""
	f.write(t, dir)
	_, err := Find(dir)
	if !errors.Is(err, ErrNoKernel) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"6.1.0-50-cloud-amd64: it is too old", "6.6", "CONFIG_OVERLAY_FS", "get-kernel.sh"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	cases := []struct {
		name   string
		change func(*fake)
		want   string // in the error; empty when the kernel is fit
	}{
		{"fit", func(*fake) {}, ""},
		{"6.6 itself", func(f *fake) { f.release = "6.6"; f.image = fakeBzImage("6.6 x", f.image) }, ""},
		{"all built in", func(f *fake) {
			for name := range f.config {
				f.config[name] = "y"
			}
			f.files = nil
		}, ""},
		{"too old", func(f *fake) { f.release = "6.5.13-test" }, "6.5.13-test: it is too old: guests need 6.6"},
		{"no release", func(f *fake) { f.release = "mine" }, "not a kernel release"},
		{"no EROFS", func(f *fake) { f.config["EROFS_FS"] = "" }, "CONFIG_EROFS_FS is not set (for images)"},
		{"two missing", func(f *fake) { f.config["VIRTIO_BLK"] = ""; delete(f.config, "MEMCG") }, "CONFIG_MEMCG"},
		{"module where built in is needed", func(f *fake) { f.config["UNIX"] = "m" }, "CONFIG_UNIX=m must be built in"},
		{"other architecture", func(f *fake) { delete(f.config, archOption[runtime.GOARCH]) }, "architecture"},
	}
	if runtime.GOARCH == "amd64" {
		cases = append(cases, []struct {
			name   string
			change func(*fake)
			want   string
		}{
			{"no ACPI", func(f *fake) { f.config["ACPI"] = "" }, "CONFIG_ACPI"},
			{"image of another release", func(f *fake) { f.image = fakeBzImage("6.12.2-other x", f.image) }, `of release "6.12.2-other"`},
			{"image is something else", func(f *fake) { f.image = []byte("#!/bin/sh") }, "not an x86 kernel image"},
			{"image is cut off", func(f *fake) { f.image = f.image[:len(f.image)-9] }, "cut off"},
		}...)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			c.change(f)
			err := f.write(t, t.TempDir()).Check()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestCheckNeedsConfig(t *testing.T) {
	s := newFake(t).write(t, t.TempDir())
	if err := os.Remove(s.configPath()); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestVmlinux(t *testing.T) {
	for name, pack := range map[string]func(*testing.T, []byte) []byte{"xz": xzPack, "zstd": zstdPack, "gzip": gzipPack, "lz4": lz4Pack} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.image = fakeBzImage(fakeRelease, pack(t, fakeVmlinux()))
			path, sum, err := f.write(t, t.TempDir()).Vmlinux(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasSuffix(got, []byte(loaded)) || hash(got) != sum {
				t.Errorf("got %d bytes with hash %s, want those up to the loaded segment and %s", len(got), hash(got), sum)
			}
			if again, err := stripELF(got); err != nil || !bytes.Equal(again, got) {
				t.Errorf("the stripped kernel is no ELF file: %v", err)
			}
		})
	}
}

func TestVmlinuxRefuses(t *testing.T) {
	cases := map[string]struct {
		payload []byte
		want    string
	}{
		"unknown compression": {[]byte("BZh91AY&SY and more"), "not known here"},
		"no payload":          {nil, "no payload"},
		"broken stream":       {append([]byte("\xfd7zXZ\x00"), make([]byte, 64)...), "decompress"},
		"no ELF":              {xzPack(t, []byte("not a kernel at all, but long enough to look at")), "vmlinux"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.image = fakeBzImage(fakeRelease, c.payload)
			if _, _, err := f.write(t, t.TempDir()).Vmlinux(t.TempDir()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func FuzzExtractVmlinux(f *testing.F) {
	f.Add(fakeBzImage("6.12.1 x", []byte("\x1f\x8b0123456789")))
	f.Add(fakeVmlinux())
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = extractVmlinux(b) // must not panic
		_, _ = stripELF(b)
	})
}
