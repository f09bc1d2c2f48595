// Command images measures what it costs to make an image from a registry usable, for Pinnace and for other
// tools, one after the other in turn, on one machine and in one run. It builds the image, pushes it in its variants
// to a registry on loopback, and prints tables. See README.md for how to read them.
//
// It needs root and a Debian machine, and the two directories that peers.sh and trees.sh make.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/sandbox"
)

func main() {
	sandbox.Main(map[string]sandbox.Part{image.ConfinedPart: image.Confined})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-images: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir := flag.String("dir", "/var/tmp/pinnace-bench", "where peers.sh and trees.sh left what they made; some GB are written there")
	rounds := flag.Int("rounds", 5, "of each measurement")
	only := flag.String("only", "", "measure these tools only, with commas between them")
	variants := flag.String("variants", "gzip,zstd", "of the image")
	pullInto := flag.String("pull", "", "pull the image given as argument into this store, say what it took, and end; what is measured as pinnace")
	again := flag.Int("again", 0, "with -pull: how often to look the image up afterwards")
	flag.Parse()
	if *pullInto != "" {
		return pull(ctx, *pullInto, *again, flag.Args())
	}
	if os.Geteuid() != 0 {
		return errors.New("the tools that Pinnace is compared with need root; run it by: sudo make bench-images")
	}
	b := &bench{
		dir: *dir, root: filepath.Join(*dir, "root"), work: filepath.Join(*dir, "work"), rounds: *rounds,
		only: split(*only), variants: split(*variants),
	}
	return b.run(ctx)
}

// A bench is one run.
type bench struct {
	dir, root, work string
	rounds          int
	only, variants  []string

	registry string // host and port
	images   map[string]*madeImage
	missed   []string // gates
	lookups  bool     // pinnace looks up what it has pulled
}

func (b *bench) run(ctx context.Context) (err error) {
	// What an earlier run that was killed left mounted or running is in its own namespaces, and gone with it.
	if err := errors.Join(os.RemoveAll(b.work), os.MkdirAll(b.work, 0o750)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	stop, err := b.startRegistry(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if err := b.makeImages(ctx); err != nil {
		return err
	}
	fmt.Println(b.header())
	for _, variant := range b.variants {
		if err := b.cold(ctx, variant); err != nil {
			return err
		}
	}
	if err := b.warm(ctx); err != nil {
		return err
	}
	if len(b.missed) > 0 {
		return fmt.Errorf("gates missed: %s", strings.Join(b.missed, "; "))
	}
	return nil
}
