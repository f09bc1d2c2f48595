package inflate

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A sample is content of a kind that layers have.
type sample struct {
	name    string
	content []byte
}

// samples are of about size bytes each. They are made of what the Go toolchain and the module cache hold. Where that is too little, the rest
// is generated, which the name then says.
func samples(tb testing.TB, size int) []sample {
	tb.Helper()
	root, modules := goEnv(tb)
	list := []sample{
		{"binaries", collect(tb, size, executable, filepath.Join(root, "bin"), filepath.Join(root, "pkg", "tool"))},
		{"text", collect(tb, size, extension(".go", ".md", ".txt", ".s"), filepath.Join(root, "src"))},
		{"javascript", collect(tb, size, extension(".js", ".mjs", ".ts", ".css", ".html"), root, modules)},
	}
	for i, s := range list {
		if len(s.content) < min(size, 1<<20) {
			list[i] = sample{s.name + " (generated)", generate(s.name == "binaries")[:size]}
		}
	}
	return list
}

func goEnv(tb testing.TB) (root, modules string) {
	tb.Helper()
	out, err := exec.Command("go", "env", "GOROOT", "GOMODCACHE").Output()
	if err != nil {
		return "", ""
	}
	root, modules, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	return root, modules
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&0o111 != 0
}

func extension(list ...string) func(string) bool {
	return func(path string) bool { return slices.Contains(list, filepath.Ext(path)) }
}

// collect appends the wanted files below dirs to each other, up to size, as a tar does.
func collect(tb testing.TB, size int, want func(string) bool, dirs ...string) []byte {
	tb.Helper()
	var content []byte
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || !want(path) {
				return nil //nolint:nilerr // what cannot be read is left out
			}
			if b, err := os.ReadFile(path); err == nil {
				header := fmt.Appendf(nil, "%s%*s", filepath.Base(path), 500-len(filepath.Base(path)), "0000644")
				content = append(append(content, header...), b...)
				content = append(content, make([]byte, 511-(len(content)-1)%512)...)
			}
			if len(content) >= size {
				return fs.SkipAll
			}
			return nil
		})
	}
	return content[:min(len(content), size)]
}

const sampleSize = 16 << 20

// generate makes content that compresses about as well as programs, or as text.
func generate(binary bool) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 3000)
	for i := range words {
		words[i] = make([]byte, 2+rng.IntN(9))
		for j := range words[i] {
			if binary {
				words[i][j] = byte(rng.ExpFloat64() * 40)
			} else {
				words[i][j] = "etaoinshrdlucmfwypvbgkjqxz(){};=.,"[min(33, int(rng.ExpFloat64()*8))]
			}
		}
	}
	var out bytes.Buffer
	for out.Len() < sampleSize {
		out.Write(words[min(len(words)-1, int(rng.ExpFloat64()*400))])
		if rng.IntN(4) == 0 {
			out.WriteByte(byte(rng.IntN(256)))
		}
	}
	return out.Bytes()
}
