package vmtest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm/holder"
)

// TestMain is also the holder of the tests' monitors, when it is started by that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == holder.Name {
		os.Exit(holder.Main(os.Args))
	}
	os.Exit(m.Run())
}
