package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/guest"
)

const (
	// segmentBytes is how large a log file gets. An instance has two: what is older is dropped, so that it
	// never holds more than 50 MiB.
	segmentBytes = 25 << 20
	// keepLogs is how long the logs of an instance stay after its last line.
	keepLogs = 7 * 24 * time.Hour
	// maxRecord bounds one stored line: guest.MaxLine in base64, and what goes around it.
	maxRecord = 32 << 10
)

// segmentSuffix ends the names of log files; before it comes their number.
const segmentSuffix = ".ndjson"

// logRecord is one stored line.
type logRecord struct {
	Attempt uint32 `json:"attempt"`
	guest.Line
}

// logStore keeps the output of the instances of a host: a directory for each, with numbered files that hold a
// line of JSON for each line of output. Files are only ever appended to, and the newest two are kept.
//
// A line that was stored survives the end of the agent's process. When the host itself crashes, the lines of its
// last seconds may be missing, and the last one may be cut; a line that is not whole is skipped.
type logStore struct {
	dir     string
	now     func() time.Time
	segment int64

	mu   sync.Mutex
	open map[string]*instanceLog // guarded by mu: of the instances that can write
}

func openLogStore(dir string, now func() time.Time) (*logStore, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for logs: %w", err)
	}
	return &logStore{dir: dir, now: now, segment: segmentBytes, open: map[string]*instanceLog{}}, nil
}

// run removes logs whose time is over, until ctx is done.
func (s *logStore) run(ctx context.Context) {
	for {
		s.expire()
		if !sleep(ctx, time.Hour) {
			return
		}
	}
}

// expire removes the logs of instances that have been silent for keepLogs and can write no more.
func (s *logStore) expire() {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return // The next hour tries again; nothing depends on it.
	}
	for _, e := range entries {
		s.expireOne(e.Name())
	}
}

func (s *logStore) expireOne(instance string) {
	// With mu held nobody begins to write what is removed.
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := filepath.Join(s.dir, instance)
	if s.open[instance] != nil || s.now().Sub(lastWrite(dir)) < keepLogs {
		return
	}
	_ = os.RemoveAll(dir) // as above
}

// lastWrite is when something in dir was last written. What cannot be looked at counts as written just now.
func lastWrite(dir string) time.Time {
	var last time.Time
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	for _, path := range append(paths, dir) {
		info, statErr := os.Stat(path)
		if err = errors.Join(err, statErr); err != nil {
			return time.Now()
		}
		if info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last
}

// begin lets an instance write, until end. Nothing is made on disk before its first line.
func (s *logStore) begin(instance string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[instance] == nil {
		s.open[instance] = &instanceLog{dir: filepath.Join(s.dir, instance), segment: s.segment, grown: make(chan struct{})}
	}
}

// end lets go of the files of an instance that has ended for good. Those who follow it come to the end.
func (s *logStore) end(instance string) {
	s.mu.Lock()
	l := s.open[instance]
	delete(s.open, instance)
	s.mu.Unlock()
	if l != nil {
		l.close()
	}
}

func (s *logStore) of(instance string) *instanceLog {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[instance]
}

// append keeps one line of an instance that has begun. When it returns nil the line survives the end of this
// process; after an error it can be appended again.
func (s *logStore) append(instance string, attempt uint32, line guest.Line) error {
	l := s.of(instance)
	if l == nil {
		return fs.ErrClosed
	}
	return l.append(logRecord{Attempt: attempt, Line: line})
}

// tail are the last lines that an attempt of an instance that has begun has written, for people.
func (s *logStore) tail(instance string, attempt uint32) []string {
	l := s.of(instance)
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for _, r := range l.recent {
		if r.Attempt == attempt && r.Dropped == 0 {
			lines = append(lines, tailLine(string(r.Data)))
		}
	}
	return lines
}

// lastSeq is the number of the last line of an attempt that is stored, of an instance that has begun; 0 for none.
func (s *logStore) lastSeq(instance string, attempt uint32) (uint64, error) {
	l := s.of(instance)
	if l == nil {
		return 0, fs.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.recent) == 0 {
		if err := l.remember(); err != nil {
			return 0, err
		}
	}
	if n := len(l.recent); n > 0 && l.recent[n-1].Attempt == attempt {
		return l.recent[n-1].Seq, nil
	}
	return 0, nil
}

// remember reads the last lines that an earlier run has written. It is called with mu held.
func (l *instanceLog) remember() error {
	numbers, err := segments(l.dir)
	if err != nil {
		return err
	}
	for _, number := range slices.Backward(numbers) {
		if l.recent, err = lastRecords(segmentPath(l.dir, number)); err != nil || len(l.recent) > 0 {
			return err
		}
	}
	return nil
}

// lastRecords reads the last whole lines of a log file, tailLines at most.
func lastRecords(path string) ([]logRecord, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// Two lines of the greatest length at least, one of which a crash may have cut.
	buf := make([]byte, min(info.Size(), 4*maxRecord))
	if _, err := f.ReadAt(buf, info.Size()-int64(len(buf))); err != nil {
		return nil, err
	}
	var records []logRecord
	for line := range bytes.SplitSeq(buf, []byte{'\n'}) {
		var r logRecord
		if json.Unmarshal(line, &r) == nil && r.Seq > 0 {
			records = append(records, r)
		}
	}
	return records[max(0, len(records)-tailLines):], nil
}

// instanceLog is the log of one instance that can write.
type instanceLog struct {
	dir     string
	segment int64

	mu     sync.Mutex // guards what follows
	f      *os.File   // nil before the first line
	number int        // of f
	size   int64      // of f
	torn   bool       // f may end within a line
	recent []logRecord
	grown  chan struct{} // closed and replaced when there is more to read; closed for good with the log
	closed bool
}

func (l *instanceLog) append(r logRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fs.ErrClosed
	}
	if err := l.makeRoom(int64(len(b))); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if l.torn {
		b = append([]byte{'\n'}, b...)
	}
	n, err := l.f.Write(b)
	l.size += int64(n)
	if err != nil {
		l.torn = l.torn || n > 0
		return fmt.Errorf("write log: %w", err)
	}
	l.torn = false
	if l.recent = append(l.recent, r); len(l.recent) > tailLines {
		l.recent = slices.Delete(l.recent, 0, 1)
	}
	close(l.grown)
	l.grown = make(chan struct{})
	return nil
}

// makeRoom sees to it that f is open and takes n bytes more. It is called with mu held.
func (l *instanceLog) makeRoom(n int64) error {
	if l.f == nil {
		if err := l.openNewest(); err != nil {
			return err
		}
	}
	if l.size == 0 || l.size+n <= l.segment {
		return nil
	}
	next, err := os.OpenFile(segmentPath(l.dir, l.number+1), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	// Nothing is lost by these: every line was written already, and a file that stays is removed the next time.
	_ = l.f.Close()
	l.f, l.size, l.torn = next, 0, false
	l.number++
	l.removeOld()
	return nil
}

// openNewest opens the file that an earlier run wrote last, or the first one.
func (l *instanceLog) openNewest() error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	numbers, err := segments(l.dir)
	if err != nil {
		return err
	}
	number := 1
	if len(numbers) > 0 {
		number = numbers[len(numbers)-1]
	}
	f, err := os.OpenFile(segmentPath(l.dir, number), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	last := []byte{'\n'}
	if info.Size() > 0 {
		if _, err := f.ReadAt(last, info.Size()-1); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	l.f, l.number, l.size, l.torn = f, number, info.Size(), last[0] != '\n'
	l.removeOld()
	return nil
}

// removeOld keeps the newest two files.
func (l *instanceLog) removeOld() {
	numbers, err := segments(l.dir)
	if err != nil {
		return // The next file tries again.
	}
	for _, n := range numbers {
		if n < l.number-1 {
			_ = os.Remove(segmentPath(l.dir, n)) // likewise
		}
	}
}

func (l *instanceLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	if l.f != nil {
		_ = l.f.Close() // everything was written already
	}
	close(l.grown)
}

// look is what a reader needs to know to wait for more.
func (l *instanceLog) look() (grown <-chan struct{}, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.grown, l.closed
}

func segmentPath(dir string, number int) string {
	return filepath.Join(dir, fmt.Sprintf("%08d%s", number, segmentSuffix))
}

// segments are the numbers of the log files in dir, in order. A directory that is not there has none.
func segments(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		text, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if n, err := strconv.Atoi(text); ok && err == nil && n > 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}
