package inflate

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"slices"
	"testing"
	"time"

	kpgzip "github.com/klauspost/compress/gzip"
)

// BenchmarkDecode decodes the same data by three decoders in turn, as the image store reads it: by Read,
// into 128 KiB. It reports MB of content per second for each, and how many times as fast as the others ours
// is, as the median over all rounds.
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
					begin := time.Now()
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
					took[i] = append(took[i], time.Since(begin).Seconds())
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
