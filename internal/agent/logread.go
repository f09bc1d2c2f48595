package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// read gives the stored lines of an instance to emit in order, only the last tail ones unless that is 0, and
// with follow those that come until ctx is done or the instance has ended for good.
func (s *logStore) read(ctx context.Context, instance string, tail int, follow bool, emit func(logRecord) error) error {
	if !instanceName.MatchString(instance) {
		return nil // it has none
	}
	l := s.of(instance)
	r := newLogReader(filepath.Join(s.dir, instance))
	defer r.close()
	from, err := tailStart(ctx, r.dir, tail)
	if err != nil {
		return err
	}
	emit = r.after(from, markGaps(emit))
	for {
		// The order matters: look, then read, then wait for what look saw to change.
		var grown <-chan struct{}
		closed := true
		if l != nil {
			grown, closed = l.look()
		}
		if err := r.readAll(ctx, emit); err != nil {
			return err
		}
		if !follow || closed {
			return ctx.Err()
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A logPosition is a place between two lines: behind the first lines of a file.
type logPosition struct{ number, lines int }

// tailStart is where the last n lines in dir begin; all of them when n is 0.
func tailStart(ctx context.Context, dir string, n int) (logPosition, error) {
	if n == 0 {
		return logPosition{}, nil
	}
	r := newLogReader(dir)
	defer r.close()
	var files []logPosition // with all of their lines
	err := r.readAll(ctx, func(logRecord) error {
		if len(files) == 0 || files[len(files)-1].number != r.number {
			files = append(files, logPosition{number: r.number})
		}
		files[len(files)-1].lines++
		return nil
	})
	for _, file := range slices.Backward(files) {
		if n <= file.lines {
			return logPosition{file.number, file.lines - n}, err
		}
		n -= file.lines
	}
	return logPosition{}, err
}

// after passes on what l reads behind a position.
func (l *logReader) after(from logPosition, emit func(logRecord) error) func(logRecord) error {
	skipped := 0
	return func(r logRecord) error {
		switch {
		case l.number < from.number:
			return nil
		case l.number == from.number && skipped < from.lines:
			skipped++
			return nil
		}
		return emit(r)
	}
}

// markGaps puts a marker where lines are missing, because the reader was slower than the files that went.
func markGaps(emit func(logRecord) error) func(logRecord) error {
	var last logRecord
	return func(r logRecord) error {
		if last.Attempt == r.Attempt && r.Seq > last.Seq+1 {
			gap := logRecord{Attempt: r.Attempt, Line: guest.Line{
				Seq: r.Seq - 1, Time: r.Time, Stream: r.Stream, Dropped: r.Seq - last.Seq - 1,
			}}
			if err := emit(gap); err != nil {
				return err
			}
		}
		last = r
		return emit(r)
	}
}

// logReader reads the log files of an instance, one after the other, while somebody may be writing them.
type logReader struct {
	dir    string
	number int // of f
	f      *os.File
	r      *bufio.Reader
	line   []byte // what there is of a line that is not whole yet
	long   bool   // the line is too long to be one of ours
}

func newLogReader(dir string) *logReader {
	return &logReader{dir: dir, r: bufio.NewReaderSize(nil, maxRecord)}
}

func (l *logReader) close() {
	if l.f != nil {
		_ = l.f.Close() // it was only read
	}
}

// readAll gives every whole line that there is to emit.
func (l *logReader) readAll(ctx context.Context, emit func(logRecord) error) error {
	for {
		// A file that has a successor before its end was reached is complete.
		next, err := l.successor()
		if err != nil {
			return err
		}
		if err := l.readFile(ctx, emit); err != nil || next == 0 {
			return err
		}
		if err := l.open(next); err != nil {
			return err
		}
	}
}

// successor is the number of the next file, or 0 when there is none.
func (l *logReader) successor() (int, error) {
	numbers, err := segments(l.dir)
	if err != nil {
		return 0, err
	}
	for _, n := range numbers {
		if n > l.number {
			return n, nil
		}
	}
	return 0, nil
}

// open goes on with another file. One that is gone meanwhile counts as read.
func (l *logReader) open(number int) error {
	l.close()
	l.f, l.number, l.line, l.long = nil, number, nil, false
	f, err := os.Open(segmentPath(l.dir, number))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	l.f = f
	l.r.Reset(f)
	return nil
}

// readFile gives every whole line that the file has now.
func (l *logReader) readFile(ctx context.Context, emit func(logRecord) error) error {
	for l.f != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		part, err := l.r.ReadSlice('\n')
		if !l.long {
			l.line = append(l.line, part...)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			l.line, l.long = nil, true
			continue
		case err != nil:
			return err
		}
		var rec logRecord
		whole := !l.long && len(l.line) > 1 && json.Unmarshal(l.line, &rec) == nil
		l.line, l.long = l.line[:0], false
		if !whole {
			continue // what a crash has cut
		}
		if err := emit(rec); err != nil {
			return err
		}
	}
	return nil
}
