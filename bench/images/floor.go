package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"
)

// A floor is what cannot be avoided, measured part by part: CPU time of fetching the blobs over loopback, of
// hashing them, of decoding them at the speed of the fastest decoder there is, of hashing what they hold, and of
// writing that.
type floor struct {
	fetch, hashBlobs, decode, hashTars, write time.Duration
	without                                   string // what could not be measured
}

func (f floor) sum() time.Duration { return f.fetch + f.hashBlobs + f.decode + f.hashTars + f.write }

func (b *bench) floor(ctx context.Context, variant string) (f floor, err error) {
	buffer := aligned(1 << 20)
	decoder := map[string][]string{"gzip": {"igzip", "-d", "-c"}, "zstd": {"zstd", "-d", "-c", "-q"}}[variant]
	if _, err := os.Stat(filepath.Join(b.root, "usr/bin", decoder[0])); err != nil {
		f.without = decoder[0]
	}
	out := filepath.Join(b.work, "floor")
	defer func() { err = errors.Join(err, os.Remove(out)) }()
	for _, l := range b.images["v1"].layers {
		blob := l.blobs[variant]
		for _, part := range []struct {
			into *time.Duration
			do   func() error
		}{
			{&f.fetch, func() error {
				return fetch(ctx, "http://"+b.registry+"/v2/bench/"+variant+"/blobs/"+blob.digest, buffer)
			}},
			{&f.hashBlobs, func() error { return hashOnly(blob.path, buffer) }},
			{&f.hashTars, func() error { return hashOnly(l.tar, buffer) }},
			{&f.write, func() error { return writeOnly(out, l.size, buffer) }},
		} {
			took, err := ownCPU(part.do)
			if err != nil {
				return f, err
			}
			*part.into += took
		}
		if f.without != "" {
			continue
		}
		took, err := b.decode(ctx, decoder, blob.path)
		if err != nil {
			return f, err
		}
		f.decode += took
	}
	return f, nil
}

// decode runs a decoder into nothing. The pages that it reads are in memory.
func (b *bench) decode(ctx context.Context, decoder []string, path string) (took time.Duration, err error) {
	g, err := newGroup("floor")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, g.remove()) }()
	in := filepath.Join(b.work, "floor-blob")
	if err := errors.Join(os.RemoveAll(in), os.Link(path, in)); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.Remove(in)) }()
	c, err := g.measure(ctx, b.inside("/bin/sh", "-c", fmt.Sprintf(`exec "$@" %s >/dev/null`, b.at(in)), "sh", decoder[0], decoder[1], decoder[2])...)
	return c.cpu, err
}

func fetch(ctx context.Context, url string, buffer []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, answer.Status)
	}
	for err == nil {
		_, err = answer.Body.Read(buffer)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// hashOnly hashes a file of which one piece is read again and again, so that reading is not counted.
func hashOnly(path string, buffer []byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	sum := sha256.New()
	for n := info.Size(); n > 0; n -= int64(len(buffer)) {
		sum.Write(buffer[:min(n, int64(len(buffer)))])
	}
	return nil
}

// writeOnly writes and syncs as many bytes, in the cheapest way that there is: past the page cache.
func writeOnly(path string, size int64, buffer []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	for at := int64(0); at < size; at += int64(len(buffer)) {
		if _, err := f.WriteAt(buffer, at); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & 4095) //nolint:gosec // Only to learn where the buffer lies.
	return b[skip : skip+n]
}

func ownCPU(do func() error) (time.Duration, error) {
	var before, after syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	return time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()), err
}

func printFloor(ours *series, floors []floor) {
	part := func(of func(floor) time.Duration) float64 {
		var list []time.Duration
		for _, f := range floors {
			list = append(list, of(f))
		}
		return median(list).Seconds()
	}
	sum := part(floor.sum)
	fmt.Printf("\nfloor: %.2f s CPU = fetch %.2f + sha256 of blobs %.2f + decode %.2f + sha256 of tars %.2f + write %.2f", sum,
		part(func(f floor) time.Duration { return f.fetch }), part(func(f floor) time.Duration { return f.hashBlobs }),
		part(func(f floor) time.Duration { return f.decode }), part(func(f floor) time.Duration { return f.hashTars }),
		part(func(f floor) time.Duration { return f.write }))
	if floors[0].without != "" {
		fmt.Printf("; without decoding: %s is missing", floors[0].without)
	}
	if len(ours.costs) > 0 {
		fmt.Printf("; pinnace is at %.0f %% of it (goal 80)", 100*sum/median(column(ours, cpuSeconds)))
	}
	fmt.Println()
}
