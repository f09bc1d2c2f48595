package server

import (
	"sync"

	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/rollout"
)

// waits are why what deployments want is not so, for people to see. The loop, whose memory it is, makes it known after
// each look.
type waits struct {
	mu sync.Mutex
	of map[string]string // by deployment
}

func (w *waits) publish(blocked map[string]*rollout.Blocked) {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.of)
	if w.of == nil {
		w.of = map[string]string{}
	}
	for deployment, b := range blocked {
		w.of[deployment] = b.Reason
	}
}

// app says what an app waits for.
func (w *waits) app(app *fleet.App) (reasons []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, deployment := range []string{app.Live, app.Active} {
		if reason := w.of[deployment]; reason != "" {
			reasons = append(reasons, reason)
		}
	}
	return reasons
}
