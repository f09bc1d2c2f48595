package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Pull makes the image that manifestDigest pins complete in the store. Manifest and config are the bytes
// that the registry gave; they are checked against the digest. With nil they are those of the image's record, for
// an image that was complete once; the error wraps ErrNotFound without one. Layers that are there are not asked for,
// and a blob that several pulls want at once is fetched once.
//
// progress may be nil. It is called from several goroutines, but never two at a time, and not after Pull
// has returned; it must be quick.
//
// Errors that wrap ErrRefused stay as they are however often one tries; others need not. After an error
// the layers that were complete stay in the store, unless it was that there is no room (ErrNoSpace).
//
// The image is held while it is pulled. Whoever uses it afterwards takes a Lease before.
func (s *Store) Pull(ctx context.Context, src Source, manifestDigest string, manifest, config []byte,
	progress func(Progress),
) (_ *Image, err error) {
	spec, err := s.spec(manifestDigest, manifest, config)
	if err != nil {
		return nil, fmt.Errorf("pull image %s: %w", quote(manifestDigest), err)
	}
	tell := serialise(progress)
	img, ok, err := s.Lookup(manifestDigest)
	if err != nil {
		return nil, err
	}
	if ok {
		s.touch(manifestDigest)
		for i := range spec.blobs {
			tell(spec.progress(i).cached())
		}
		return img, nil
	}
	// From here on no collection takes what is there, or what arrives.
	lease, err := s.hold(ctx, LeaseSpec{Owner: "store", Kind: "pull", Process: true}, spec)
	if err != nil {
		return nil, fmt.Errorf("pull image %s: %w", manifestDigest, err)
	}
	defer func() { err = errors.Join(err, s.Release(lease.ID)) }()
	img, err = s.pull(ctx, src, spec, lease, tell)
	if outOfSpace(err) && s.collectAll(ctx) > 0 {
		img, err = s.pull(ctx, src, spec, lease, tell)
	}
	if err != nil {
		return nil, fmt.Errorf("pull image %s: %w", manifestDigest, s.full(ctx, lease, spec, err))
	}
	return img, nil
}

// pull gets what is missing of an image that lease holds.
func (s *Store) pull(ctx context.Context, src Source, spec *spec, lease *Lease, tell func(Progress)) (*Image, error) {
	if err := s.admit(ctx, lease, spec); err != nil {
		return nil, err
	}
	w := s.newWorker()
	img, err := s.complete(ctx, src, w, spec, tell)
	return img, errors.Join(err, w.release())
}

func (s *Store) complete(ctx context.Context, src Source, w *worker, spec *spec, tell func(Progress)) (*Image, error) {
	layers, err := s.pullLayers(ctx, src, w, spec, tell)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	return s.assemble(ctx, w, spec, layers)
}

// pullLayers makes all layers be there, several at a time, the largest first so that none is left to the end
// alone.
func (s *Store) pullLayers(ctx context.Context, src Source, w *worker, spec *spec, tell func(Progress)) ([]*layerFile, error) {
	layers := make([]*layerFile, len(spec.blobs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(s.workers)
	for _, i := range bySize(spec.blobs) {
		blob := spec.blobs[i]
		group.Go(func() error {
			l, err := s.layerFile(spec.diffIDs[i], blob)
			if err == nil {
				err = s.pullLayer(ctx, src, w, l, spec.progress(i), tell)
			}
			if err != nil {
				return fmt.Errorf("layer %d of %d (%s): %w", i+1, len(spec.blobs), blob.Digest, err)
			}
			layers[i] = l
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var total int64
	for i, l := range layers {
		if total += l.size; total > s.limits.ImageBytes {
			return nil, refuse("layers 1 to %d have more than %d bytes uncompressed", i+1, s.limits.ImageBytes)
		}
	}
	return layers, nil
}

// bySize gives the indexes of blobs, those of the largest first.
func bySize(blobs []descriptor) []int {
	order := make([]int, len(blobs))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(blobs[b].Size, blobs[a].Size) })
	return order
}

func (s *Store) pullLayer(ctx context.Context, src Source, w *worker, l *layerFile, p Progress, tell func(Progress)) error {
	report := func(bytes int64) {
		p.Bytes = bytes
		tell(p)
	}
	err := s.flights.do(ctx, l.diffID, report, func(ctx context.Context, report func(int64)) error {
		// A layer of its own for the flight, since others wait for it with theirs, and may go on doing so
		// when this Pull has gone.
		mine := *l
		return s.ensure(ctx, src, w, &mine, report)
	}, w.hold)
	if err != nil {
		return err
	}
	ok, err := l.check()
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%s is gone or damaged right after it was stored", l.tar)
	}
	p.Cached = p.Bytes == 0
	p.Bytes, p.Done = p.Total, true
	tell(p)
	return nil
}

func (s *spec) progress(layer int) Progress {
	return Progress{
		Layer: layer, Layers: len(s.blobs), DiffID: s.diffIDs[layer],
		Digest: s.blobs[layer].Digest, Total: s.blobs[layer].Size,
	}
}

func (p Progress) cached() Progress {
	p.Bytes, p.Cached, p.Done = p.Total, true, true
	return p
}

// serialise keeps calls of progress apart.
func serialise(progress func(Progress)) func(Progress) {
	if progress == nil {
		return func(Progress) {}
	}
	var mu sync.Mutex
	return func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		progress(p)
	}
}
