package kernel

import (
	"bytes"
	"debug/elf"
	"strings"
	"testing"
)

// signed appends a signature as scripts/sign-file of the kernel does.
func signed(data []byte, signature string, length uint32) []byte {
	out := append(bytes.Clone(data), signature...)
	out = append(out, 0, 0, 2, 0, 0, 0, 0, 0, byte(length>>24), byte(length>>16), byte(length>>8), byte(length))
	return append(out, signatureEnd...)
}

func TestLeanLeavesTheSignatureOut(t *testing.T) {
	plain := []byte("code and data")
	whole := signed(plain, "signature", 9)
	for _, tt := range []struct {
		name       string
		data, want []byte
		enforced   bool
	}{
		{"signed", whole, plain, false},
		{"signed, and the kernel insists", whole, whole, true},
		{"not signed", plain, plain, false},
		{"the length says too much", signed(plain, "signature", 9999), signed(plain, "signature", 9999), false},
		{"nothing but the end", []byte(signatureEnd), []byte(signatureEnd), false},
		{"all of it", signed(nil, "signature", 9), []byte{}, false},
	} {
		if got := lean(bytes.Clone(tt.data), tt.enforced); !bytes.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestLeanOfARealModule has a real kernel's modules: what is left is the same file but for the signature and one byte,
// and has no types for the kernel to read.
func TestLeanOfARealModule(t *testing.T) {
	s := realKernel(t)
	tree, err := openModules(s.Release, s.modulesPath())
	if err != nil {
		t.Fatal(err)
	}
	data, err := readModule(tree.files["erofs"])
	if err != nil {
		t.Skipf("this kernel has EROFS built in: %v", err)
	}
	got := lean(data, false)
	if bytes.HasSuffix(data, []byte(signatureEnd)) == (len(got) == len(data)) || len(got) > len(data) {
		t.Errorf("%d bytes of %d are left", len(got), len(data))
	}
	f, err := elf.NewFile(bytes.NewReader(got))
	if err != nil {
		t.Fatal(err)
	}
	if f.Section(".BTF") != nil {
		t.Error("it has types still")
	}
	differ := 0
	for i := range got {
		if got[i] != data[i] {
			differ++
		}
	}
	if differ > 1 {
		t.Errorf("%d bytes differ", differ)
	}
	before, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for i, section := range before.Sections {
		if strings.TrimPrefix(section.Name, ".BTF") != "" && f.Sections[i].Name != section.Name {
			t.Errorf("section %s is called %s", section.Name, f.Sections[i].Name)
		}
	}
}
