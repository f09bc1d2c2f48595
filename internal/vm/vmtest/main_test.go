package vmtest_test

import (
	"os"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm/holder"
)

// TestMain is also the holder of the tests' monitors, when it is started by that name.
func TestMain(m *testing.M) {
	holder.Enter()
	os.Exit(m.Run())
}
