package sqlite_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
)

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		l, err := eventlog.Open(t.Context(), sqlite.New(sqlite.Options{Dir: dir}), eventlog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for j := range 20 {
			r, err := l.Append(context.Background(), eventlog.Append{Stream: "a", Expect: uint64(i*20 + j), Type: "x", IdempotencyKey: fmt.Sprint("k", i%2, j), Payload: nil})
			if i < 2 && err != nil {
				t.Fatal(err)
			}
			_ = r
		}
		fmt.Println(l.Head())
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
