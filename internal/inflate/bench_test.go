package inflate

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"slices"
	"syscall"
	"testing"
	"time"

	kpgzip "github.com/klauspost/compress/gzip"
)

// BenchmarkDecode decodes the same data by three decoders in turn, as the image store reads it: by Read,
// into 128 KiB. It reports MB of content per second of CPU time for each, and how many times as fast as the
// others ours is: medians over all rounds, of which there should be ten or more (-benchtime 10x).
func BenchmarkDecode(b *testing.B) {
	for _, s := range samples(b, sampleSize) {
		b.Run(s.name, func(b *testing.B) {
			blob := deflated(b, s.content, stdgzip.DefaultCompression)
			ours := NewReader(nil)
			kp, std := new(kpgzip.Reader), new(stdgzip.Reader)
			decoders := []struct {
				name   string
				reset  func(io.Reader) error
				reader io.Reader
			}{
				{"inflate", func(r io.Reader) error { ours.Reset(r); return nil }, ours},
				{"klauspost", kp.Reset, struct{ io.Reader }{kp}},
				{"std", std.Reset, struct{ io.Reader }{std}},
			}
			buffer := make([]byte, 128<<10)
			took := make([][]float64, len(decoders))
			for b.Loop() {
				for i, d := range decoders {
					begin := cpuTime(b)
					if err := d.reset(bytes.NewReader(blob)); err != nil {
						b.Fatal(err)
					}
					var n int
					for {
						m, err := d.reader.Read(buffer)
						n += m
						if err == io.EOF {
							break
						}
						if err != nil {
							b.Fatal(err)
						}
					}
					took[i] = append(took[i], (cpuTime(b) - begin).Seconds())
					if n != len(s.content) {
						b.Fatalf("%s: %d bytes, want %d", d.name, n, len(s.content))
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			for i, d := range decoders {
				b.ReportMetric(float64(len(s.content))/1e6/median(took[i]), d.name+"-MB/s")
				if i > 0 {
					ratios := make([]float64, len(took[i]))
					for j := range ratios {
						ratios[j] = took[i][j] / took[0][j]
					}
					b.ReportMetric(median(ratios), "x-"+d.name)
				}
			}
		})
	}
}

// cpuTime is what this process has used so far. Other processes disturb it less than the time of day.
func cpuTime(tb testing.TB) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

func deflated(tb testing.TB, content []byte, level int) []byte {
	tb.Helper()
	var out bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&out, level)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}
