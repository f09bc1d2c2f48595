package proxy

import (
	"net/netip"
	"sync"
	"time"
)

// maxSources is how many sources a limiter remembers; those that have been quiet are forgotten first.
const maxSources = 4096

// A limiter allows each source a number of events per second, and as many at once.
type limiter struct {
	rate float64

	mu sync.Mutex
	// Guarded by mu.
	sources map[netip.Addr]*allowance
}

type allowance struct {
	left float64
	at   time.Time
}

func newLimiter(perSecond float64) *limiter {
	return &limiter{rate: perSecond, sources: map[netip.Addr]*allowance{}}
}

func (l *limiter) allow(source netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, ok := l.sources[source]
	if !ok {
		if len(l.sources) >= maxSources {
			l.forget(now)
		}
		if len(l.sources) >= maxSources {
			return false
		}
		a = &allowance{left: l.rate, at: now}
		l.sources[source] = a
	}
	a.left = min(l.rate, a.left+now.Sub(a.at).Seconds()*l.rate)
	a.at = now
	if a.left < 1 {
		return false
	}
	a.left--
	return true
}

// forget drops sources that have their full allowance again.
func (l *limiter) forget(now time.Time) {
	for source, a := range l.sources {
		if now.Sub(a.at) >= time.Second {
			delete(l.sources, source)
		}
	}
}
