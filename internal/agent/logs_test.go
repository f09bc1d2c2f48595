package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// newStore is a store with small files.
func newStore(t *testing.T, dir string, segment int64) *logStore {
	t.Helper()
	s, err := openLogStore(dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	s.segment = segment
	s.begin("api-1")
	t.Cleanup(func() { s.end("api-1") })
	return s
}

// write appends lines first to last of attempt 1.
func write(t *testing.T, s *logStore, first, last int) {
	t.Helper()
	for n := first; n <= last; n++ {
		if _, err := s.append("api-1", 1, line(n)); err != nil {
			t.Fatal(err)
		}
	}
}

func line(n int) guest.Line {
	return guest.Line{Seq: uint64(n), Stream: guest.StreamStdout, Data: fmt.Appendf(nil, "line %d", n)}
}

// numbers reads the numbers of the lines; a marker is the negative count of what it stands for.
func numbers(t *testing.T, s *logStore, tail int) []int {
	t.Helper()
	var got []int
	err := s.read(t.Context(), "api-1", tail, false, func(r logRecord) error {
		if r.Dropped > 0 {
			got = append(got, -int(r.Dropped))
			return nil
		}
		if want := line(int(r.Seq)); !bytes.Equal(r.Data, want.Data) || r.Attempt != 1 {
			t.Errorf("line %d: got %q", r.Seq, r.Data)
		}
		got = append(got, int(r.Seq))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func sequence(first, last int) []int {
	var s []int
	for n := first; n <= last; n++ {
		s = append(s, n)
	}
	return s
}

func TestLogsTail(t *testing.T) {
	s := newStore(t, t.TempDir(), 1000) // some ten lines to a file
	write(t, s, 1, 15)
	for tail, want := range map[int][]int{0: sequence(1, 15), 1: {15}, 3: sequence(13, 15), 12: sequence(4, 15), 15: sequence(1, 15), 1 << 30: sequence(1, 15)} {
		if got := numbers(t, s, tail); !slices.Equal(got, want) {
			t.Errorf("tail %d: got %v, want %v", tail, got, want)
		}
	}
}

// TestLogsRotate bounds what an instance holds, and never loses a line of the newest file.
func TestLogsRotate(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, 1000)
	write(t, s, 1, 100)
	files, err := segments(filepath.Join(dir, "api-1"))
	if err != nil || len(files) != 2 {
		t.Fatalf("got files %v, %v; want two", files, err)
	}
	for _, n := range files {
		if info, err := os.Stat(segmentPath(filepath.Join(dir, "api-1"), n)); err != nil || info.Size() > 1000 {
			t.Errorf("file %d: %v, %v", n, info.Size(), err)
		}
	}
	got := numbers(t, s, 0)
	if len(got) < 10 || !slices.Equal(got, sequence(got[0], 100)) {
		t.Errorf("got %v", got)
	}
	// The next run goes on where this one was.
	s.end("api-1")
	s = newStore(t, dir, 1000)
	write(t, s, 101, 103)
	if got := numbers(t, s, 5); !slices.Equal(got, sequence(99, 103)) {
		t.Errorf("after a restart: got %v", got)
	}
}

// TestLogsAfterCrash: a line that was cut is lost, its neighbours are not.
func TestLogsAfterCrash(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, segmentBytes)
	write(t, s, 1, 3)
	s.end("api-1")
	path := segmentPath(filepath.Join(dir, "api-1"), 1)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()-10); err != nil {
		t.Fatal(err)
	}
	s = newStore(t, dir, segmentBytes)
	if got := numbers(t, s, 0); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("with a cut line: got %v", got)
	}
	// The next attempt counts its lines anew.
	if _, err := s.append("api-1", 2, line(1)); err != nil {
		t.Fatal(err)
	}
	var got []string
	err = s.read(t.Context(), "api-1", 2, false, func(r logRecord) error {
		got = append(got, fmt.Sprintf("%d/%d", r.Attempt, r.Seq))
		return nil
	})
	if err != nil || !slices.Equal(got, []string{"1/2", "2/1"}) {
		t.Errorf("after more lines: got %v, %v", got, err)
	}
}

func TestLogsSkipWhatIsNoLine(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, segmentBytes)
	write(t, s, 1, 1)
	path := segmentPath(filepath.Join(dir, "api-1"), 1)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, junk := range []string{"\n", "no json\n", strings.Repeat("x", 5*maxRecord) + "\n"} {
		if _, err := f.WriteString(junk); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, s, 2, 2)
	if got := numbers(t, s, 0); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("got %v", got)
	}
	if got := numbers(t, s, 2); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("tail: got %v", got)
	}
}

// TestLogsHalfWritten: a line of which the reader has seen a part is read when it is whole.
func TestLogsHalfWritten(t *testing.T) {
	dir := t.TempDir()
	whole := `{"attempt":1,"seq":1,"data":"b25l"}` + "\n"
	mustWrite(t, segmentPath(dir, 1), whole[:20])
	r := newLogReader(dir)
	defer r.close()
	for n, part := range []string{"", whole[20:25], whole[25:]} {
		f, err := os.OpenFile(segmentPath(dir, 1), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(part); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		got := ""
		err = r.readAll(t.Context(), func(rec logRecord) error { got += string(rec.Data); return nil })
		if want := []string{"", "", "one"}[n]; got != want || err != nil {
			t.Errorf("after part %d: got %q, %v, want %q", n, got, err, want)
		}
	}
}

// TestLogsFollow reads while somebody writes through many files, and misses nothing.
func TestLogsFollow(t *testing.T) {
	s := newStore(t, t.TempDir(), 2000)
	write(t, s, 1, 5)
	got := make(chan int)
	ended := make(chan error, 1)
	go func() {
		ended <- s.read(t.Context(), "api-1", 2, true, func(r logRecord) error {
			got <- int(r.Seq)
			return nil
		})
	}()
	for _, want := range []int{4, 5} {
		if n := <-got; n != want {
			t.Fatalf("got %d, want %d", n, want)
		}
	}
	for n := 6; n <= 300; n++ {
		write(t, s, n, n)
		if seq := <-got; seq != n {
			t.Fatalf("got line %d, want %d", seq, n)
		}
	}
	s.end("api-1")
	if err := <-ended; err != nil {
		t.Errorf("at the end of the instance: %v", err)
	}
}

// TestLogsFollowTooSlowly: a reader who is overtaken by the files that go is told how much he has missed.
func TestLogsFollowTooSlowly(t *testing.T) {
	s := newStore(t, t.TempDir(), 1000)
	write(t, s, 1, 1)
	reading, goOn := make(chan struct{}), make(chan struct{})
	var got []int
	ended := make(chan error, 1)
	go func() {
		ended <- s.read(t.Context(), "api-1", 0, true, func(r logRecord) error {
			if r.Dropped > 0 {
				got = append(got, -int(r.Dropped))
			} else {
				got = append(got, int(r.Seq))
			}
			if len(got) == 1 {
				close(reading)
				<-goOn
			}
			return nil
		})
	}()
	<-reading
	write(t, s, 2, 100)
	close(goOn)
	s.end("api-1")
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	last, gaps := 0, 0
	for _, n := range got {
		if n < 0 {
			gaps++
			last += -n
			continue
		}
		if last++; n != last {
			t.Fatalf("got %d, want %d, in %v", n, last, got)
		}
	}
	if last != 100 || gaps == 0 {
		t.Errorf("got %v; want all hundred lines accounted for, and a gap", got)
	}
}

func TestLogsFollowEndsWithReader(t *testing.T) {
	s := newStore(t, t.TempDir(), segmentBytes)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.read(ctx, "api-1", 0, true, func(logRecord) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// Nothing was written, so nothing is there.
	if _, err := os.Stat(filepath.Join(s.dir, "api-1")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory of an instance without lines: %v", err)
	}
}

// TestLogsKeepTheirTime: for a week after the last line, and for as long as the instance can write.
func TestLogsKeepTheirTime(t *testing.T) {
	s := newStore(t, t.TempDir(), segmentBytes)
	now := time.Now()
	s.now = func() time.Time { return now }
	s.begin("api-2")
	if _, err := s.append("api-2", 1, line(1)); err != nil {
		t.Fatal(err)
	}
	write(t, s, 1, 1)
	s.end("api-1")
	there := func(instance string) bool {
		s.expire()
		_, err := os.Stat(filepath.Join(s.dir, instance))
		return err == nil
	}
	now = now.Add(keepLogs - time.Minute)
	if !there("api-1") {
		t.Error("the logs are gone within the week")
	}
	now = now.Add(2 * time.Minute)
	if there("api-1") {
		t.Error("the logs are still there after a week")
	}
	if !there("api-2") {
		t.Error("the logs of an instance that runs are gone")
	}
	s.end("api-2")
	if there("api-2") {
		t.Error("the logs are still there after the end of a silent instance")
	}
}

// TestLogsOfNobody: names that are no names of instances lead nowhere.
func TestLogsOfNobody(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, filepath.Join(dir, "logs"), segmentBytes)
	mustWrite(t, segmentPath(filepath.Join(dir, "secrets"), 1), `{"seq":1,"data":"c2VjcmV0"}`+"\n")
	for _, name := range []string{"../secrets", "", ".", "api-9"} {
		err := s.read(t.Context(), name, 0, true, func(r logRecord) error { return fmt.Errorf("got %q", r.Data) })
		if err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := s.append(name, 1, line(1)); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("append to %q: %v", name, err)
		}
	}
}

// TestLogsWithoutRoom: what could not be written can be written again, and the file stays readable.
func TestLogsWithoutRoom(t *testing.T) {
	s := newStore(t, t.TempDir(), segmentBytes)
	write(t, s, 1, 2)
	l := s.of("api-1")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("needs /dev/full: %v", err)
	}
	real := l.f
	l.f = full
	if _, err := s.append("api-1", 1, line(3)); err == nil {
		t.Error("a full disk took a line")
	}
	l.f = real
	_ = full.Close()
	// As if some bytes had still fitted.
	if _, err := real.WriteString(`{"attempt":1,"se`); err != nil {
		t.Fatal(err)
	}
	l.torn = true
	write(t, s, 3, 4)
	if got := numbers(t, s, 0); !slices.Equal(got, sequence(1, 4)) {
		t.Errorf("got %v", got)
	}
	if got := s.tail("api-1", 1); len(got) != 4 || got[3] != "line 4" {
		t.Errorf("tail: got %q", got)
	}
}

// TestLogsCutBatch: of lines that were written together and only in part, those that are whole count as kept, and the
// others can be written again.
func TestLogsCutBatch(t *testing.T) {
	s := newStore(t, t.TempDir(), segmentBytes)
	write(t, s, 1, 2)
	l := s.of("api-1")
	r, short, err := os.Pipe() // it takes a page of the lines, and nobody makes room
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer short.Close()
	const page = 4096
	conn, err := short.SyscallConn() // Fd would make it wait
	if err != nil {
		t.Fatal(err)
	}
	var sizeErr error
	err = conn.Control(func(fd uintptr) { _, sizeErr = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, page) })
	if err = errors.Join(err, sizeErr); err != nil {
		t.Fatal(err)
	}
	if err := short.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var lines []guest.Line
	for n := 3; n <= 102; n++ {
		lines = append(lines, line(n))
	}
	real := l.f
	l.f = short
	kept, err := s.append("api-1", 1, lines...)
	if err == nil || kept == 0 || kept == len(lines) {
		t.Fatalf("%d lines went into a page, %v", kept, err)
	}
	l.f = real
	if _, err := io.CopyN(real, r, page); err != nil {
		t.Fatal(err)
	}
	if n, err := s.append("api-1", 1, lines[kept:]...); err != nil || n != len(lines)-kept {
		t.Fatalf("%d of %d lines were kept, %v", n, len(lines)-kept, err)
	}
	if got := numbers(t, s, 0); !slices.Equal(got, sequence(1, 102)) {
		t.Errorf("got %v", got)
	}
	if got := s.tail("api-1", 1); len(got) != tailLines || got[0] != "line 93" {
		t.Errorf("tail: got %q", got)
	}
}

// TestLogsBatchOverFiles: lines that come together go into as many files as they need.
func TestLogsBatchOverFiles(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, 1000)
	var lines []guest.Line
	for n := 1; n <= 15; n++ {
		lines = append(lines, line(n))
	}
	if n, err := s.append("api-1", 1, lines...); err != nil || n != len(lines) {
		t.Fatalf("%d lines were kept, %v", n, err)
	}
	files, err := segments(filepath.Join(dir, "api-1"))
	if err != nil || len(files) != 2 {
		t.Fatalf("files %v, %v", files, err)
	}
	for _, n := range files {
		info, err := os.Stat(segmentPath(filepath.Join(dir, "api-1"), n))
		if err != nil || info.Size() > 1000 {
			t.Errorf("%v, %v", info, err)
		}
	}
	if got := numbers(t, s, 0); len(got) == 0 || got[len(got)-1] != 15 {
		t.Errorf("got %v", got)
	}
}

// TestRecordJSON: what is written by hand is what package json reads and would write.
func TestRecordJSON(t *testing.T) {
	for _, r := range []logRecord{
		{Attempt: 1, Line: line(1)},
		{Attempt: 4294967295, Line: guest.Line{Seq: 1 << 63, Time: -5, Stream: guest.StreamStderr, Data: []byte{0, '<', 0xff}, Partial: true}},
		{Line: guest.Line{Seq: 2, Stream: guest.StreamStdout, Dropped: 9}},
	} {
		want, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.appendJSON(nil); string(got) != string(want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
