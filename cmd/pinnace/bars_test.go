package main

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/image"
)

// screen is a terminal that knows what bars use of one: carriage return, line feed, cursor up, and the two ways to
// erase. It fails a test that writes beyond its width.
type screen struct {
	t             *testing.T
	width, height int
	lines         []string
	row, col      int
	scrolled      int // lines that have left at the top
}

func (s *screen) Write(p []byte) (int, error) {
	for text := string(p); text != ""; {
		if strings.HasPrefix(text, "\x1b[") {
			end := strings.IndexAny(text, "AKJ")
			n, _ := strconv.Atoi(text[2:end])
			switch text[end] {
			case 'A':
				if s.row -= n; s.row < s.scrolled {
					s.t.Errorf("the cursor went %d lines above the screen", s.scrolled-s.row)
				}
			case 'K':
				s.lines[s.row] = s.lines[s.row][:s.col]
			case 'J':
				s.lines = append(s.lines[:s.row], s.lines[s.row][:s.col])
			}
			text = text[end+1:]
			continue
		}
		switch c := text[0]; c {
		case '\r':
			s.col = 0
		case '\n':
			s.row, s.col = s.row+1, 0
			if s.row == len(s.lines) {
				s.lines = append(s.lines, "")
			}
			s.scrolled = max(s.scrolled, len(s.lines)-s.height)
		default:
			line := s.lines[s.row]
			s.lines[s.row] = line[:s.col] + string(c) + line[min(len(line), s.col+1):]
			if s.col++; s.col >= s.width {
				s.t.Errorf("a line as wide as the terminal: %q", s.lines[s.row])
			}
		}
		text = text[1:]
	}
	return len(p), nil
}

func (s *screen) text() string { return strings.TrimRight(strings.Join(s.lines, "\n"), "\n") }

func barsOn(t *testing.T, width, height int) (*pullView, *screen, func(time.Duration)) {
	now := time.Unix(1000, 0)
	s := &screen{t: t, width: width, height: height, lines: []string{""}}
	v := &pullView{w: s, now: func() time.Time { return now }, stop: func() {}}
	v.terminal = func() (int, int, bool) { return s.width, s.height, true }
	return v, s, func(d time.Duration) { now = now.Add(d) }
}

func TestBars(t *testing.T) {
	v, s, pass := barsOn(t, 100, 24)
	layer := func(i int, bytes int64, cached, done bool) {
		v.update(image.Progress{Layer: i, Layers: 3, Digest: "sha256:0123456789abcdef", Bytes: bytes, Total: 8 << 20, Cached: cached, Done: done})
	}
	layer(0, 8<<20, true, true)
	layer(1, 0, false, false)
	v.draw()
	pass(time.Second)
	layer(1, 2<<20, false, false)
	v.draw()
	want := `layer 1/3 [==============================] is there
layer 2/3 [=======                       ]  25% 2.0 MiB of 8.0 MiB, 2.0 MiB/s
layer 3/3 [                              ] waits`
	if got := s.text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	pass(time.Second)
	layer(1, 8<<20, false, true)
	layer(2, 8<<20, false, true)
	v.end()
	want = `layer 1/3 [==============================] is there
layer 2/3 [==============================] 8.0 MiB in 2.0 s
layer 3/3 [==============================] 8.0 MiB in 0.0 s`
	if got := s.text(); got != want {
		t.Errorf("at the end\n%s\nwant\n%s", got, want)
	}
	if v.cached != 1 || v.fetched() != 16<<20 {
		t.Errorf("%d cached, %d fetched", v.cached, v.fetched())
	}
}

// More layers than the terminal has lines, and one that becomes smaller.
func TestBarsInASmallTerminal(t *testing.T) {
	for _, size := range [][2]int{{80, 6}, {30, 4}, {20, 3}} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			v, s, pass := barsOn(t, size[0], size[1])
			for round := range 50 {
				for i := range 40 {
					if round > i {
						v.update(image.Progress{Layer: i, Layers: 40, Bytes: int64(min(round-i, 5)) << 20, Total: 5 << 20, Done: round-i >= 5})
					}
				}
				pass(100 * time.Millisecond)
				v.draw()
				if n := strings.Count(s.text(), "\n") + 1; n >= s.height {
					t.Fatalf("%d lines on a terminal of %d", n, s.height)
				}
			}
			v.end()
			if got := s.text(); !strings.HasPrefix(got, "40 of 40 layers do") {
				t.Errorf("at the end: %s", got)
			}
		})
	}
}

// Where nobody looks there are lines, one for each layer and one now and then.
func TestBarsInALog(t *testing.T) {
	now := time.Unix(1000, 0)
	var out bytes.Buffer
	v := &pullView{w: &out, now: func() time.Time { return now }, stop: func() {}, terminal: func() (int, int, bool) { return 0, 0, false }}
	for n := range 13 {
		v.update(image.Progress{Layers: 2, Digest: "sha256:0123456789abcdef", Bytes: int64(n) << 20, Total: 12 << 20, Done: n == 12})
		now = now.Add(time.Second)
	}
	v.update(image.Progress{Layer: 1, Layers: 2, Digest: "sha256:0123456789abcdef", Bytes: 1, Total: 1, Cached: true, Done: true})
	v.end()
	want := `5.0 MiB of 12.0 MiB
10.0 MiB of 12.0 MiB
layer 1 of 2 sha256:0123456789ab: 12.0 MiB in 12.0 s, 1.0 MiB/s
layer 2 of 2 sha256:0123456789ab: is there
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
