package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// A madeImage is what the registry has in all variants.
type madeImage struct {
	layers  []*layerFile
	size    int64 // of the tars
	entries int
}

// makeImages makes two versions of the image, of which only the top layer differs, and pushes them.
func (b *bench) makeImages(ctx context.Context) error {
	trees, tars := filepath.Join(b.dir, "trees"), filepath.Join(b.dir, "tars")
	if _, err := os.Stat(filepath.Join(trees, ".complete")); err != nil {
		return fmt.Errorf("no trees to make the image of; run bench/images/trees.sh %s: %w", trees, err)
	}
	if err := os.MkdirAll(tars, 0o750); err != nil {
		return err
	}
	var base []*layerFile
	for _, n := range []string{"1", "2", "3"} {
		l, err := makeLayer(ctx, filepath.Join(tars, n+".tar"), func(w *tar.Writer) error { return writeTree(w, filepath.Join(trees, n)) })
		if err != nil {
			return fmt.Errorf("layer %s: %w", n, err)
		}
		base = append(base, l)
	}
	b.images = map[string]*madeImage{}
	for _, version := range []string{"v1", "v2"} {
		top, err := makeLayer(ctx, filepath.Join(tars, "4-"+version+".tar"), func(w *tar.Writer) error { return writeTop(w, version) })
		if err != nil {
			return fmt.Errorf("layer 4 of %s: %w", version, err)
		}
		made := &madeImage{layers: append(slices.Clone(base), top)}
		for _, l := range made.layers {
			made.size += l.size
			made.entries += l.entries
		}
		b.images[version] = made
		for variant := range variants {
			if err := b.push(ctx, made, version, variant); err != nil {
				return fmt.Errorf("push %s as %s: %w", version, variant, err)
			}
		}
	}
	return nil
}

func (b *bench) ref(version, variant string) string {
	return b.registry + "/bench/" + variant + ":" + version
}

func (b *bench) push(ctx context.Context, made *madeImage, version, variant string) error {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range made.layers {
		var err error
		if img, err = mutate.AppendLayers(img, l.blobs[variant]); err != nil {
			return err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	ref, err := name.ParseReference(b.ref(version, variant), name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithContext(ctx))
}

func (b *bench) header() string {
	made := b.images["v1"]
	var lines strings.Builder
	fmt.Fprintf(&lines, "image: %d layers, %d entries, %.1f MB of tar;", len(made.layers), made.entries, mb(made.size))
	for _, variant := range []string{"gzip", "zstd"} {
		var sum int64
		for _, l := range made.layers {
			sum += l.blobs[variant].size
		}
		fmt.Fprintf(&lines, " %s %.1f MB", variant, mb(sum))
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Fprintf(&lines, "\nmachine: %d cores, load before: %s", runtime.NumCPU(), strings.TrimSpace(string(load)))
	if versions, err := os.ReadFile(filepath.Join(b.root, ".versions")); err == nil {
		fmt.Fprint(&lines, "\npeers:")
		for line := range strings.Lines(string(versions)) {
			for _, want := range []string{"podman ", "skopeo ", "umoci ", "containerd ", "erofs-utils ", "isal ", "docker-registry "} {
				if strings.HasPrefix(line, want) {
					fmt.Fprintf(&lines, " %s;", strings.TrimSpace(line))
				}
			}
		}
	}
	return lines.String()
}

// A series is what one tool took, round by round.
type series struct {
	tool  tool
	costs []cost
	fault error
}

// cold measures all tools in turn, each time from nothing.
func (b *bench) cold(ctx context.Context, variant string) error {
	list := b.series()
	var floors []floor
	for round := range b.rounds {
		for _, s := range list {
			if s.fault != nil {
				continue
			}
			c, err := b.once(ctx, s.tool, b.ref("v1", variant))
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if s.fault = err; err != nil {
				fmt.Fprintf(os.Stderr, "%s, %s: %v\n", variant, s.tool.name, err)
			} else {
				s.costs = append(s.costs, c)
				fmt.Fprintf(os.Stderr, "round %d, %s, %s: %.2f s CPU, %.2f s\n", round+1, variant, s.tool.name, c.cpu.Seconds(), c.wall.Seconds())
			}
		}
		f, err := b.floor(ctx, variant)
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		floors = append(floors, f)
	}
	fmt.Printf("\n## Cold, %s, %d rounds in turn\n\n", variant, b.rounds)
	printTable(list)
	printFloor(list[0], floors)
	fmt.Println()
	b.missed = append(b.missed, judge(list, variant)...)
	return nil
}

func (b *bench) series() []*series {
	var list []*series
	for _, t := range tools {
		if len(b.only) > 0 && t.name != "pinnace" && !slices.Contains(b.only, t.name) {
			continue
		}
		s := &series{tool: t}
		if missing := b.missing(t); missing != "" {
			s.fault = fmt.Errorf("not to be had here: %s is missing", missing)
		}
		list = append(list, s)
	}
	return list
}

// once measures one tool where nothing is there yet, or after it got the images of before.
func (b *bench) once(ctx context.Context, t tool, ref string, before ...string) (c cost, err error) {
	dir, err := os.MkdirTemp(b.work, "run-")
	if err != nil {
		return cost{}, err
	}
	g, err := newGroup(filepath.Base(dir))
	if err != nil {
		return cost{}, errors.Join(err, os.RemoveAll(dir))
	}
	defer func() { err = errors.Join(err, g.remove(), os.RemoveAll(dir)) }()
	for _, earlier := range before {
		if _, err := t.get(b, ctx, g, dir, earlier); err != nil {
			return cost{}, err
		}
	}
	// What the one before wrote and did not sync is not this one's to wait for.
	syscall.Sync()
	return t.get(b, ctx, g, dir, ref)
}

// warm measures what little is to do when most or all is there.
func (b *bench) warm(ctx context.Context) error {
	b.lookups = true
	list := b.series()
	var inside, first, again []time.Duration
	for range b.rounds {
		for _, s := range list {
			if s.tool.name == "skopeo + umoci" || s.tool.name == "mkfs.erofs --oci" {
				s.fault = errors.New("does all of it again")
			}
			if s.fault != nil {
				continue
			}
			c, err := b.once(ctx, s.tool, b.ref("v2", "gzip"), b.ref("v1", "gzip"))
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if s.fault = err; err != nil {
				continue
			}
			s.costs = append(s.costs, c)
			if s.tool.name == "pinnace" {
				said := json.NewDecoder(bytes.NewReader(c.output))
				var pulled, there took
				if err := errors.Join(said.Decode(&pulled), said.Decode(&there)); err != nil {
					return err
				}
				inside, first, again = append(inside, pulled.Pull), append(first, there.First), append(again, there.Again)
			}
		}
	}
	fmt.Printf("\n## Only the top layer changed, gzip, %d rounds in turn\n\n", b.rounds)
	printTable(list)
	if len(inside) == 0 {
		return list[0].fault
	}
	fmt.Printf("\n- in process: %s ms, gate 80, goal 50\n- already there: %s ms, gate 1; the first look of a process: %s ms\n", ms(inside), ms(again), ms(first))
	if median(inside) > 80*time.Millisecond {
		b.missed = append(b.missed, "only the top layer changed")
	}
	if median(again) > time.Millisecond {
		b.missed = append(b.missed, "already there")
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("\nload after: %s", load)
	return nil
}

func ms(list []time.Duration) string {
	return fmt.Sprintf("%.1f (%.1f to %.1f)", float64(median(list).Microseconds())/1e3,
		float64(slices.Min(list).Microseconds())/1e3, float64(slices.Max(list).Microseconds())/1e3)
}

func mb(n int64) float64 { return float64(n) / 1e6 }
