package server

import (
	"maps"
	"slices"
	"sync"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// A volume is imported in two steps: its host makes it, and then the log binds it. Between the two the server can end, or
// the log refuse, and then a volume is left of which nobody knows. Hosts tell of volumes that were imported and that no
// instance has had yet (unclaimed); those among them that the log does not know and that no import here is about are
// strays, and removed.

// maxStrays is how many of a host are removed at a time.
const maxStrays = 64

// imports are the volumes that are being imported, by id.
type imports struct {
	mu  sync.Mutex
	ids map[string]bool // guarded by mu
}

func (i *imports) begin(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ids == nil {
		i.ids = map[string]bool{}
	}
	i.ids[id] = true
}

func (i *imports) end(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.ids, id)
}

func (i *imports) all() map[string]bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.ids)
}

// straysOf are the volumes of a host that are left of imports which failed. What is being imported is looked at before the
// log is: an import ends after its volume is bound.
func (s *Server) straysOf(r *pb.ReportRequest) (ids []string) {
	importing := s.imports.all()
	s.ledger.read(func(st *fleet.State) {
		for _, v := range r.GetVolumes() {
			if id := v.GetId(); v.GetUnclaimed() && !importing[id] && st.Volume(id) == nil && len(ids) < maxStrays {
				ids = append(ids, id)
			}
		}
	})
	slices.Sort(ids)
	return ids
}

// sawStrays takes over what is left of failed imports on a host, and tells whether that is news.
func (o *observed) sawStrays(host string, ids []string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.host(host)
	news := !slices.Equal(h.strays, ids)
	h.strays = ids
	return news
}

func (o *observed) straysOn(host string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if h := o.hosts[host]; h != nil {
		return h.strays
	}
	return nil
}
