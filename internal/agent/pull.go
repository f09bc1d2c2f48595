package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pinnacehq/pinnace/internal/image"
)

// pull makes the image complete in the host's store. A cached one that the environment may have makes no request.
//
// A failure that may pass is tried again within the attempt, because the end of an attempt during a rollout is
// the end of the rollout: a registry that restarts just now is not worth that.
func (t *attempt) pull(ctx context.Context) (string, error) {
	// First of all, so that no collection comes between.
	if err := t.agent.keeper.hold(ctx, t.instance); err != nil {
		return "", err
	}
	img, cached, err := t.agent.Images.Lookup(t.workload.release.Platform.ManifestDigest)
	if err == nil {
		img, err = t.pullPatiently(ctx, img, cached)
	}
	detail, built := "", ""
	if err == nil {
		detail = fmt.Sprintf("%d layers", len(img.Layers))
	}
	if cached {
		detail, built = detail+", cached", "cached"
	}
	if !t.pulled.IsZero() {
		t.next("build", detail, t.pulled)
	}
	if err != nil {
		return "", err
	}
	if t.stage != "build" {
		t.next("build", detail, time.Now()) // of which nothing was left to do
	}
	t.image = img
	if err := t.agent.keeper.used(ctx, t.instance, false); err != nil {
		t.log.Warn("remember that the image runs here", "err", err)
	}
	return built, nil
}

// pullPatiently pulls an image unless it is cached, and has the environment prove that it may have it. One that is cached
// and proved makes no request.
func (t *attempt) pullPatiently(ctx context.Context, img *image.Image, cached bool) (*image.Image, error) {
	pauses := t.agent.timing.pullPauses
	for try := 0; ; try++ {
		var err error
		var given givenBlobs
		if !cached {
			img, err = t.pullOnce(ctx, try, &given)
		}
		if err == nil {
			err = t.prove(ctx, try, given.taken())
		}
		if err == nil || errors.Is(err, image.ErrRefused) || ctx.Err() != nil || try == len(pauses) {
			return img, err
		}
		t.log.Warn("the image could not be pulled; trying again", "in", pauses[try], "err", err)
		t.setState(statePulling, "try %d of %d failed, trying again in %s: %s", try+1, len(pauses)+1, pauses[try], err)
		if !sleep(ctx, pauses[try]) {
			return nil, err
		}
	}
}

func (t *attempt) pullOnce(ctx context.Context, try int, given *givenBlobs) (*image.Image, error) {
	release := t.workload.release
	show := throttle(250*time.Millisecond, func(p image.Progress) {
		t.setState(statePulling, "pulling layer %d of %d: %s of %s", p.Layer+1, p.Layers, mib(p.Bytes), mib(p.Total))
	})
	t.pulled = time.Time{}
	done := 0
	watch := func(p image.Progress) {
		// Behind the last layer there is only the file system that is made of them.
		if p.Done {
			done++
		}
		if done == p.Layers {
			t.pulled = time.Now()
		}
		show(p)
	}
	return t.agent.Images.Pull(ctx, t.agent.source(beginningAt(release.Sources, try), t.agent.loginsOf(t.instance.id), given), release.Platform.ManifestDigest,
		release.Platform.ImageManifest, release.Platform.ImageConfig, watch)
}

// throttle calls f at most once per interval. It is not for concurrent calls.
func throttle[T any](interval time.Duration, f func(T)) func(T) {
	var last time.Time
	return func(v T) {
		if now := time.Now(); now.Sub(last) >= interval {
			last = now
			f(v)
		}
	}
}

func mib(bytes int64) string {
	if bytes < 10<<20 {
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%d MiB", bytes>>20)
}
