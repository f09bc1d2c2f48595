package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testLog writes an export whose events have the given keys, one event for each.
func testLog(keys ...string) (export string, hashes []string) {
	id := make([]byte, 16)
	prev := sha256.Sum256(append([]byte("pinnace event log 1\n"), id...))
	var lines strings.Builder
	for i, key := range keys {
		n := uint64(i + 1)
		b := append([]byte{}, prev[:]...)
		number := func(v uint64) { b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, 8), v) }
		text := func(s string) { b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...) }
		number(n)
		text("s")
		number(n)
		text("t")
		number(0)
		number(n)
		text("")
		text(key)
		text("{}")
		prev = sha256.Sum256(b)
		hashes = append(hashes, fmt.Sprintf("%x", prev))
		fmt.Fprintf(&lines, `{"seq":%d,"stream":"s","version":%d,"type":"t","type_version":0,"time_unix_nano":%d,"actor":"","idempotency_key":"%s","payload_base64":"%s","hash":"%x"}`+"\n",
			n, n, n, key, base64.StdEncoding.EncodeToString([]byte("{}")), prev)
	}
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	public := key.Public().(ed25519.PublicKey)
	m := append([]byte("pinnace checkpoint 1\n"), id...)
	m = binary.BigEndian.AppendUint64(m, uint64(len(keys)))
	m = append(m, prev[:]...)
	m = append(m, make([]byte, 8+4+32)...)
	m = append(m, public...)
	return fmt.Sprintf(`{"pinnace_event_log":"%x","format":1,"events":%d,"head":"%x"}`+"\n%s"+`{"checkpoint":%d,"hash":"%x","time_unix_nano":0,"state_version":0,"state":"%064d","key":"%x","signature":"%x"}`+"\n",
		id, len(keys), prev, lines.String(), len(keys), prev, 0, public, ed25519.Sign(key, m)), hashes
}

// TestLogcheck: the checker finds what it is for, and is content with what is well.
func TestLogcheck(t *testing.T) {
	export, h := testLog("a", "b", "b", "c")
	call := func(key string, n int) string { return fmt.Sprintf(`{"call":"%s","events":%d}`+"\n", key, n) }
	ok := func(key string, first, last int, hash string) string {
		return fmt.Sprintf(`{"end":"%s","result":"ok","first":%d,"last":%d,"hash":"%s"}`+"\n", key, first, last, hash)
	}
	end := func(key, result string) string { return fmt.Sprintf(`{"end":"%s","result":"%s"}`+"\n", key, result) }
	saw := func(n int, hash string) string { return fmt.Sprintf(`{"saw":%d,"hash":"%s"}`+"\n", n, hash) }
	a := call("a", 1) + ok("a", 1, 1, h[0])
	b := call("b", 2) + ok("b", 2, 3, h[2])
	c := call("c", 1) + ok("c", 4, 4, h[3])
	for _, tc := range []struct{ name, export, history, want string }{
		{"well", export, a + b + c + saw(2, h[1]), ""},
		{"asked again", export, a + b + a + c, ""},
		{"unknown and there", export, a + b + call("c", 1) + end("c", "unknown"), ""},
		{"unknown and not there", export, a + b + c + call("d", 1) + end("d", "unknown"), ""},
		{"killed while asking", export, a + b + c + call("d", 1) + `{"end":"d","res`, ""},
		{"refused, then asked again", export, a + b + call("c", 1) + end("c", "refused") + c, ""},
		{"lost", export, a + b + c + call("d", 1) + ok("d", 5, 5, h[0]), "LOST"},
		{"elsewhere", export, a + b + call("c", 1) + ok("c", 3, 3, h[2]), "and is at"},
		{"another hash", export, a + b + call("c", 1) + ok("c", 4, 4, h[0]), "and is at"},
		{"doubled", export, a + call("b", 1) + ok("b", 2, 2, h[1]) + c, "asked for 1 events and has 2"},
		{"half", export, a + call("b", 3) + ok("b", 2, 4, h[3]) + c, "asked for 3 events and has 2"},
		{"acknowledged short", export, a + call("b", 2) + ok("b", 2, 2, h[1]) + c, "acknowledged as 2 to 2"},
		{"refused and there", export, a + b + call("c", 1) + end("c", "refused"), "was refused"},
		{"nobody asked", export, a + b, "which no client used"},
		{"two answers", export, a + b + c + call("a", 1) + ok("a", 2, 2, h[1]), "acknowledged twice"},
		{"back in time", export, c + b + a, "after the client knew"},
		{"seen and not there", export, a + b + c + saw(9, h[0]), "a reader saw"},
		{"seen otherwise", export, a + b + c + saw(1, h[1]), "a reader saw"},
		{"done", export, a + b + call("c", 1) + end("c", "done"), ""},
		{"done and not there", export, a + b + c + call("d", 1) + end("d", "done"), "LOST"},
		{"others: well", export, a + call("c", 1) + end("c", "done"), ""},
		{"others: lost", export, a + call("d", 1) + end("d", "done"), "LOST"},
		{"others: doubled", export, call("b", 1) + end("b", "done"), "asked for 1 events and has 2"},
		{"a bit of the chain", strings.Replace(export, h[1], h[2], 1), a + b + c, "chain is broken"},
		{"a gap", strings.Replace(export, `{"seq":2`, `{"seq":3`, 1), a + b + c, "gap"},
		{"cut", export[:len(export)-3], a + b + c, "no end"},
		{"no signature", strings.Replace(export, `"time_unix_nano":0,"state`, `"time_unix_nano":1,"state`, 1), a + b + c, "signature"},
	} {
		dir := t.TempDir()
		write := func(name, text string) string {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		report, err := run(write("export", tc.export), []string{write("history", tc.history)}, strings.HasPrefix(tc.name, "others: "))
		if tc.want == "" && (err != nil || !strings.HasPrefix(report, "ok: 4 events")) {
			t.Errorf("%s: got %q, %v", tc.name, report, err)
		}
		if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
}
