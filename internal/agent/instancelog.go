package agent

import (
	"bytes"
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

	"github.com/pinnacehq/pinnace/internal/guest"
)

const (
	// writeBytes is how much is written at once, of more lines than one.
	writeBytes = 64 << 10
	// maxRecord bounds one stored line: guest.MaxLine in base64, and what goes around it.
	maxRecord = 32 << 10
)

// logRecord is one stored line.
type logRecord struct {
	Attempt uint32 `json:"attempt"`
	guest.Line
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

	buf  []byte // of write, to be used again
	ends []int  // likewise
}

// appendJSON appends what package json writes of a record.
func (r logRecord) appendJSON(dst []byte) []byte {
	dst = append(dst, `{"attempt":`...)
	dst = strconv.AppendUint(dst, uint64(r.Attempt), 10)
	dst = append(dst, ',')
	return append(r.AppendFields(dst), '}')
}

func (l *instanceLog) append(attempt uint32, lines []guest.Line) (kept int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, fs.ErrClosed
	}
	for kept < len(lines) {
		n, err := l.write(attempt, lines[kept:])
		if n > 0 {
			l.keepRecent(attempt, lines[kept:kept+n])
			kept += n
		}
		if err != nil {
			return kept, err
		}
	}
	return kept, nil
}

// write writes as many of the lines as go into one file and into one write, at least one, and returns how many are stored,
// also with an error. It is called with mu held.
func (l *instanceLog) write(attempt uint32, lines []guest.Line) (int, error) {
	b, ends := append(l.buf[:0], '\n'), l.ends[:0] // it ends what an earlier write has cut
	for _, line := range lines {
		from := len(b)
		b = append(logRecord{attempt, line}.appendJSON(b), '\n')
		if len(ends) == 0 {
			if err := l.makeRoom(int64(len(b))); err != nil {
				return 0, fmt.Errorf("open log: %w", err)
			}
		} else if len(b) > writeBytes || l.size+int64(len(b)) > l.segment {
			b = b[:from]
			break
		}
		ends = append(ends, len(b))
	}
	l.buf, l.ends = b, ends
	from := 1
	if l.torn {
		from = 0
	}
	n, err := l.f.Write(b[from:])
	l.size += int64(n)
	stored := 0
	for stored < len(ends) && ends[stored] <= from+n {
		stored++
	}
	if err != nil {
		if n > 0 {
			l.torn = stored == 0 || ends[stored-1] != from+n
		}
		return stored, fmt.Errorf("write log: %w", err)
	}
	l.torn = false
	return stored, nil
}

// keepRecent remembers the last of the lines, and wakes those who wait for more. It is called with mu held.
func (l *instanceLog) keepRecent(attempt uint32, lines []guest.Line) {
	for _, line := range lines[max(0, len(lines)-tailLines):] {
		line.Data = bytes.Clone(line.Data)
		l.recent = append(l.recent, logRecord{attempt, line})
	}
	if over := len(l.recent) - tailLines; over > 0 {
		l.recent = slices.Delete(l.recent, 0, over)
	}
	close(l.grown)
	l.grown = make(chan struct{})
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
