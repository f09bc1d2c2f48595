package server

import (
	"slices"
	"strings"
	"sync"
)

// broker brings those who want something of a host and the agent of that host together. A host is never called: its agent
// watches what is wanted of it, and calls back with the id of what it takes. What the two then say to each other is no
// affair of the broker, and nothing of it is kept when the server ends.
type broker[W any] struct {
	most int // how many may be there at a time

	mu    sync.Mutex
	wants map[string]*want[W] // guarded by mu; by id
}

// want is something that somebody waits for.
type want[W any] struct {
	host, instance string
	what           W
	taken          bool
}

func newBroker[W any](most int) *broker[W] {
	return &broker[W]{most: most, wants: map[string]*want[W]{}}
}

// add has something wanted of a host until it is removed: of an instance there, or of none when that is empty. It returns
// false when there is too much already.
func (b *broker[W]) add(id, host, instance string, what W) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.wants) >= b.most {
		return false
	}
	b.wants[id] = &want[W]{host: host, instance: instance, what: what}
	return true
}

// remove takes back what was added. Whoever has taken it may still be at it.
func (b *broker[W]) remove(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.wants, id)
}

// take hands what is wanted to the agent of its host, once: nobody else can take it then, and no other host ever can. ok
// is false when it is not there, or not there for this host, or taken.
func (b *broker[W]) take(id, host string) (what W, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.wants[id]
	if w == nil || w.host != host || w.taken {
		return what, false
	}
	w.taken = true
	return w.what, true
}

// waiting returns what is wanted of a host and neither taken nor in told, by id, and puts it into told, which is the
// caller's. Held back is what is wanted of an instance for which it is early: one of which the host was not told yet, so
// that it would answer that it knows nothing of it.
func (b *broker[W]) waiting(host string, told map[string]bool, early func(instance string) bool) []W {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ids []string
	for id, w := range b.wants {
		if w.host == host && !w.taken && !told[id] && (w.instance == "" || !early(w.instance)) {
			told[id] = true
			ids = append(ids, id)
		}
	}
	for id := range told {
		if b.wants[id] == nil {
			delete(told, id)
		}
	}
	slices.SortFunc(ids, strings.Compare)
	out := make([]W, len(ids))
	for i, id := range ids {
		out[i] = b.wants[id].what
	}
	return out
}
