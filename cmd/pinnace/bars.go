package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/pinnacehq/pinnace/internal/image"
)

// A pullView shows how far the layers of a pull are: bars that are redrawn on a terminal, lines elsewhere.
type pullView struct {
	w        io.Writer
	silent   bool
	terminal func() (width, height int, ok bool)
	now      func() time.Time
	stop     func() // ends what draws, and waits for it

	mu     sync.Mutex // guards what follows
	layers []layerView
	drawn  int       // lines on the terminal that are redrawn
	told   time.Time // when the last line about what goes on was written
	cached int       // layers
}

type layerView struct {
	image.Progress
	began   time.Time
	ended   time.Time
	rate    float64 // bytes a second, smoothed
	counted int64   // bytes that are in rate
	at      time.Time
}

const (
	redraw   = 100 * time.Millisecond // between two frames
	sayAgain = 5 * time.Second        // between two lines about what goes on
)

// newPullView begins to show a pull. end must be called.
func (c *cli) newPullView() *pullView {
	v := &pullView{w: c.stderr, silent: c.quiet, now: time.Now, stop: func() {}}
	v.terminal = func() (int, int, bool) {
		f, ok := c.stderr.(*os.File)
		if !ok || !term.IsTerminal(int(f.Fd())) || c.getenv("TERM") == "dumb" {
			return 0, 0, false
		}
		width, height, err := term.GetSize(int(f.Fd()))
		return width, height, err == nil && width >= 20 && height >= 3
	}
	if _, _, ok := v.terminal(); ok && !v.silent {
		v.stop = v.animate()
	}
	return v
}

// animate draws until the function that it returns is called.
func (v *pullView) animate() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(redraw)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				v.draw()
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// update takes the news of a layer.
func (v *pullView) update(p image.Progress) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for len(v.layers) < p.Layers {
		v.layers = append(v.layers, layerView{})
	}
	l := &v.layers[p.Layer]
	now := v.now()
	if l.began.IsZero() {
		l.began, l.at = now, now
	}
	was := l.Done
	l.Progress = p
	if !p.Done || was {
		v.say(now)
		return
	}
	l.ended = now
	if p.Cached {
		v.cached++
	}
	if _, _, ok := v.terminal(); !ok && !v.silent {
		fmt.Fprintln(v.w, l.line())
	}
}

// say writes now and then a line about what goes on, where there are no bars.
func (v *pullView) say(now time.Time) {
	if _, _, ok := v.terminal(); ok || v.silent {
		return
	}
	if v.told.IsZero() {
		v.told = now
	}
	if now.Sub(v.told) < sayAgain {
		return
	}
	v.told = now
	var have, total int64
	for _, l := range v.layers {
		have, total = have+l.Bytes, total+l.Total
	}
	fmt.Fprintf(v.w, "%s of %s\n", byteSize(have), byteSize(total))
}

// line says of a layer that is done what it took.
func (l *layerView) line() string {
	text := fmt.Sprintf("layer %d of %d %s: ", l.Layer+1, l.Layers, shortDigest(l.Digest))
	if l.Cached {
		return text + "is there"
	}
	took := l.ended.Sub(l.began)
	return text + fmt.Sprintf("%s in %.1f s, %s/s", byteSize(l.Total), took.Seconds(), byteSize(perSecond(l.Total, took)))
}

func perSecond(bytes int64, d time.Duration) int64 {
	if d < time.Millisecond {
		d = time.Millisecond
	}
	return int64(float64(bytes) / d.Seconds())
}

// fetched is what came from the registry.
func (v *pullView) fetched() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	var n int64
	for _, l := range v.layers {
		if !l.Cached {
			n += l.Bytes
		}
	}
	return n
}

// end draws the last frame.
func (v *pullView) end() {
	v.stop()
	if _, _, ok := v.terminal(); ok && !v.silent {
		v.draw()
	}
}

// draw replaces the last frame. It never writes a line that would wrap, or more lines than the terminal has, since
// the cursor could then not be taken back to the first.
func (v *pullView) draw() {
	v.mu.Lock()
	defer v.mu.Unlock()
	width, height, ok := v.terminal()
	if !ok || len(v.layers) == 0 {
		return
	}
	lines := v.frame(width-1, height-1)
	var out strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", min(v.drawn, height-1))
	}
	for _, l := range lines {
		out.WriteString("\r" + l + "\x1b[K\n")
	}
	out.WriteString("\x1b[J") // what a longer frame left
	v.drawn = len(lines)
	_, _ = io.WriteString(v.w, out.String())
}

// frame is one line for each layer, or as many of those that are on their way as there is room for.
func (v *pullView) frame(width, height int) []string {
	now := v.now()
	shown := make([]int, 0, len(v.layers))
	done := 0
	for i := range v.layers {
		l := &v.layers[i]
		l.measure(now)
		if l.Done {
			done++
		}
		shown = append(shown, i)
	}
	var lines []string
	if len(shown) > height {
		shown = shown[:0]
		for i, l := range v.layers {
			if !l.Done && !l.began.IsZero() && len(shown) < height-1 {
				shown = append(shown, i)
			}
		}
		lines = append(lines, clipTo(fmt.Sprintf("%d of %s done", done, plural(len(v.layers), "layer")), width))
	}
	for _, i := range shown {
		lines = append(lines, v.layers[i].bar(i, len(v.layers), width))
	}
	return lines
}

// measure smooths the rate over about two seconds.
func (l *layerView) measure(now time.Time) {
	passed := now.Sub(l.at).Seconds()
	if l.began.IsZero() || l.Done || passed <= 0 {
		return
	}
	rate := float64(l.Bytes-l.counted) / passed
	weight := min(1, passed/2)
	if l.counted == 0 {
		weight = 1
	}
	l.rate += (rate - l.rate) * weight
	l.counted, l.at = l.Bytes, now
}

// bar is a layer in one line of at most width characters.
func (l *layerView) bar(i, layers, width int) string {
	head := fmt.Sprintf("layer %*d/%d ", len(fmt.Sprint(layers)), i+1, layers)
	var tail string
	part := 0.0
	switch {
	case l.began.IsZero():
		tail = " waits"
	case l.Cached && l.Done:
		part, tail = 1, " is there"
	case l.Done:
		part, tail = 1, fmt.Sprintf(" %s in %.1f s", byteSize(l.Total), l.ended.Sub(l.began).Seconds())
	default:
		if l.Total > 0 {
			part = min(1, float64(l.Bytes)/float64(l.Total))
		}
		tail = fmt.Sprintf(" %3.0f%% %s of %s, %s/s", 100*part, byteSize(l.Bytes), byteSize(l.Total), byteSize(int64(l.rate)))
	}
	room := min(30, width-len(head)-2-40)
	if room < 5 {
		return clipTo(head+strings.TrimSpace(tail), width)
	}
	full := int(part * float64(room))
	return clipTo(head+"["+strings.Repeat("=", full)+strings.Repeat(" ", room-full)+"]"+tail, width)
}

func clipTo(s string, width int) string {
	if len(s) > width {
		return s[:max(0, width)]
	}
	return s
}
