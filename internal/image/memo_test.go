package image

import (
	"os"
	"path/filepath"
	"testing"
)

// What was found in a file counts as long as the file is the same, and not at all when it is so new that another
// write might not show.
func TestMemo(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	stat := func(path string) os.FileInfo {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	var m memo
	old := stat("memo_test.go")
	m.keep("a", old, 5)
	if found, ok := m.look("a", old); !ok || found != 5 {
		t.Errorf("got %d, %t", found, ok)
	}
	if _, ok := m.look("a", stat(self)); ok {
		t.Error("another file counts as the same")
	}
	if _, ok := m.look("b", old); ok {
		t.Error("another path counts as the same")
	}
	path := filepath.Join(t.TempDir(), "new")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.keep(path, stat(path), 1)
	if _, ok := m.look(path, stat(path)); ok {
		t.Error("a file that was written just now is remembered")
	}
}
