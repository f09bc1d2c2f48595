package guest

import (
	"context"
	"time"
)

// pace throttles a reader to so many units per second, with a burst of two seconds' worth. The sender feels it as
// back-pressure. It is owned by one goroutine.
type pace struct {
	perSecond float64
	level     float64 // units that may be taken at once; negative while in debt
	last      time.Time
}

func newPace(perSecond int) *pace {
	return &pace{perSecond: float64(perSecond), level: 2 * float64(perSecond), last: time.Now()}
}

// take waits until n units may be taken.
func (p *pace) take(ctx context.Context, n int) error {
	now := time.Now()
	p.level = min(p.level+now.Sub(p.last).Seconds()*p.perSecond, 2*p.perSecond) - float64(n)
	p.last = now
	if p.level >= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(time.Duration(-p.level / p.perSecond * float64(time.Second)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
