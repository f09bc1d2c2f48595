package lastuse_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/identity/lastuse"
	"github.com/pinnacehq/pinnace/internal/identity/lastuse/lastusetest"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses")
	lastusetest.Run(t, func() lastuse.Store { return lastuse.InFile(path) })
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}

	// What cannot be read is said once, and is replaced by the next save.
	if err := os.WriteFile(path, []byte(`{"a":`), 0o600); err != nil {
		t.Fatal(err)
	}
	s := lastuse.InFile(path)
	if _, err := s.Load(t.Context()); err == nil {
		t.Error("read half a file")
	}
	if err := s.Save(t.Context(), map[string]time.Time{"a": time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Load(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("got %v, %v", all, err)
	}
}
