package scheduler

import (
	"cmp"
	"container/heap"
	"slices"
)

// Cluster is a set of hosts that is being filled: what one request books, the next one sees. For one request
// Place does the same.
//
// Hosts are kept in the order in which they are taken, per zone, so that a request costs one walk over them at
// most, however many instances it has. A Cluster must not be used concurrently.
type Cluster struct {
	hosts  []Host // by id
	zones  []zone // by name
	labels map[label][]uint64
	count  []int // by index: instances of the app that is being placed; all 0 between requests
}

// label is one that hosts can have; the cluster has the set of those that do, in bits by index.
type label struct{ name, value string }

// zone has the hosts that can be given something.
type zone struct {
	order []rank // ascending: the host that is taken first comes first
}

// rank is a host's place in the order: whether it is oversubscribed, its room, its index, from high bits to low.
type rank uint64

const indexBits = 32

func (r rank) index() int { return int(r & (1<<indexBits - 1)) }

func (c *Cluster) rank(index int) rank {
	h := &c.hosts[index]
	r := rank(shares-h.fullness())<<indexBits | rank(index)
	if h.CPUBooked >= h.promisable() {
		r |= 1 << 63
	}
	return r
}

// NewCluster copies hosts, each of which must have an id of its own.
func NewCluster(hosts []Host) *Cluster {
	c := &Cluster{hosts: slices.Clone(hosts), labels: map[label][]uint64{}, count: make([]int, len(hosts))}
	slices.SortFunc(c.hosts, func(a, b Host) int { return cmp.Compare(a.ID, b.ID) })
	byZone := map[string][]rank{}
	for i := range c.hosts {
		if h := &c.hosts[i]; h.Connected && !h.Draining {
			byZone[h.Zone] = append(byZone[h.Zone], c.rank(i))
		}
	}
	for _, order := range byZone {
		slices.Sort(order)
		c.zones = append(c.zones, zone{order})
	}
	// No order of zones is ever looked at: which comes first is decided by what their hosts are.
	return c
}

// find returns the index of a host, or false.
func (c *Cluster) find(id string) (int, bool) {
	return slices.BinarySearchFunc(c.hosts, id, func(h Host, id string) int { return cmp.Compare(h.ID, id) })
}

// Place is as the function of that name, for the hosts as earlier requests have left them. What it returns is booked.
func (c *Cluster) Place(req Request) ([]Placement, error) {
	p := c.begin(&req)
	room := req.Quota.room(req, len(req.Ordinals))
	hostOf := make(map[int]int, len(req.Ordinals)) // ordinal to index
	var stuck []BoundRefusal
	for _, ordinal := range req.Ordinals {
		id, ok := req.Bound[ordinal]
		if !ok || len(hostOf) == room {
			continue
		}
		index, known := c.find(id)
		if !known {
			stuck = append(stuck, BoundRefusal{Ordinal: ordinal, Host: id, unknown: true})
			continue
		}
		if why := lacksFor(&req, &c.hosts[index], ordinal); why != fits {
			stuck = append(stuck, BoundRefusal{Ordinal: ordinal, Host: id, why: why})
			continue
		}
		p.take(index, req.Grown[ordinal])
		hostOf[ordinal] = index
	}
	p.line()
	full := false
	for _, ordinal := range req.Ordinals {
		if _, ok := req.Bound[ordinal]; ok || full || len(hostOf) == room {
			continue
		}
		index, ok := p.next()
		if !ok {
			full = true
			continue
		}
		hostOf[ordinal] = index
	}
	p.end()
	placed := make([]Placement, 0, len(hostOf))
	for _, ordinal := range req.Ordinals {
		if index, ok := hostOf[ordinal]; ok {
			placed = append(placed, Placement{Ordinal: ordinal, Host: c.hosts[index].ID})
		}
	}
	if len(placed) < len(req.Ordinals) {
		return placed, c.refuse(&req, len(placed), stuck, full)
	}
	return placed, nil
}

// placing is one request being served.
type placing struct {
	*Cluster
	req     *Request
	allowed []uint64 // bits of the hosts that the labels allow; nil for all
	running []int    // the hosts that ran the app before
	given   []given  // the hosts that were given something, a host as often as it was
	queues  queue
}

// given is a host that was given an instance, and where in the order it is from before.
type given struct {
	index int
	from  rank
}

func (c *Cluster) begin(req *Request) *placing {
	p := &placing{Cluster: c, req: req, given: make([]given, 0, len(req.Ordinals))}
	for id, n := range req.Running {
		if index, ok := c.find(id); ok && n > 0 {
			c.count[index] = n
			p.running = append(p.running, index)
		}
	}
	for name, value := range req.Labels {
		p.allowed = and(p.allowed, c.with(label{name, value}))
	}
	return p
}

// with has the bits of the hosts with a label.
func (c *Cluster) with(l label) []uint64 {
	bits, ok := c.labels[l]
	if !ok {
		bits = make([]uint64, (len(c.hosts)+63)/64)
		for i := range c.hosts {
			if value, has := c.hosts[i].Labels[l.name]; has && value == l.value {
				bits[i/64] |= 1 << (i % 64)
			}
		}
		c.labels[l] = bits
	}
	return bits
}

func and(a, b []uint64) []uint64 {
	if a == nil {
		return b
	}
	both := make([]uint64, len(a))
	for i := range a {
		both[i] = a[i] & b[i]
	}
	return both
}

// fits says whether a host, which is in a zone's order, can take one more.
func (p *placing) fits(index int) bool {
	if p.allowed != nil && p.allowed[index/64]&(1<<(index%64)) == 0 {
		return false
	}
	h := &p.hosts[index]
	return lacksRoom(p.req, h) == fits && slices.Contains(p.req.Architectures, h.Architecture)
}

// take books one instance on a host, and so much for its volumes.
func (p *placing) take(index int, volumes int64) {
	p.given = append(p.given, given{index, p.rank(index)})
	p.hosts[index].book(p.req, volumes)
	p.count[index]++
}

// line makes the zones' queues.
func (p *placing) line() {
	p.queues = make(queue, 0, len(p.zones))
	for i := range p.zones {
		q := &zoneQueue{placing: p, order: p.zones[i].order, later: map[int][]int{}}
		p.queues = append(p.queues, q)
	}
	p.sortRunning()
	alive := p.queues[:0]
	for _, q := range p.queues {
		if q.advance() {
			alive = append(alive, q)
		}
	}
	p.queues = alive
	heap.Init(&p.queues)
}

// sortRunning puts the hosts that run the app already into the rounds in which it is their turn.
func (p *placing) sortRunning() {
	ran := slices.Clone(p.running)
	for _, g := range p.given { // because a volume is there
		ran = append(ran, g.index)
	}
	if len(ran) == 0 {
		return
	}
	slices.Sort(ran)
	queueOf := make(map[string]*zoneQueue, len(p.queues))
	for _, q := range p.queues {
		queueOf[p.hosts[q.order[0].index()].Zone] = q
	}
	for _, index := range slices.Compact(ran) {
		h, n := &p.hosts[index], p.count[index]
		q := queueOf[h.Zone]
		if q == nil {
			continue
		}
		q.instances += n // on a host that is draining, too: it fails with its zone
		if h.Connected && !h.Draining {
			q.later[n] = append(q.later[n], index)
		}
	}
}

// next books an instance on the host that is taken first.
func (p *placing) next() (int, bool) {
	if len(p.queues) == 0 {
		return 0, false
	}
	q := p.queues[0]
	index := q.head.index()
	p.take(index, p.req.VolumesBytes)
	q.instances++
	q.later[q.round+1] = append(q.later[q.round+1], index)
	if q.advance() {
		heap.Fix(&p.queues, 0)
	} else {
		heap.Pop(&p.queues)
	}
	return index, true
}

// zoneQueue has the hosts of a zone in the order in which a request takes them: in rounds, the n-th of which has
// the hosts that run n instances of the app. A host that is given one moves to the next round, so nothing that
// happens in a round changes its order.
type zoneQueue struct {
	*placing
	instances int           // of the app in the zone
	round     int           // how many instances of the app the hosts run that are looked at
	order     []rank        // what is left of the round
	later     map[int][]int // hosts of later rounds
	head      rank          // the host that is taken first
}

// advance moves head to the next host that fits; false when there is none.
func (q *zoneQueue) advance() bool {
	for {
		for len(q.order) > 0 {
			head := q.order[0]
			q.order = q.order[1:]
			if (q.round > 0 || q.count[head.index()] == 0) && q.fits(head.index()) {
				q.head = head
				return true
			}
		}
		delete(q.later, q.round)
		if len(q.later) == 0 {
			return false
		}
		q.round = soonest(q.later)
		hosts := q.later[q.round]
		q.order = make([]rank, len(hosts))
		for i, index := range hosts {
			q.order[i] = q.rank(index)
		}
		slices.Sort(q.order)
	}
}

func soonest(rounds map[int][]int) int {
	first := -1
	for n := range rounds {
		if first < 0 || n < first {
			first = n
		}
	}
	return first
}

// queue is a heap of the zones that have a host that fits, the one whose turn it is first.
type queue []*zoneQueue

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	a, b := q[i], q[j]
	return cmp.Or(cmp.Compare(a.instances, b.instances), cmp.Compare(a.round, b.round), cmp.Compare(a.head, b.head)) < 0
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*zoneQueue)) }
func (q *queue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	*q = (*q)[:last]
	return x
}

// few is up to how many hosts are moved in a zone's order one by one: a move shifts what is between its two
// places, whereas moving many at once goes over all of the order.
const few = 16

// end puts the hosts that were given something where they belong in the order.
func (p *placing) end() {
	for _, index := range p.running {
		p.count[index] = 0
	}
	// A host is in the order where it was before it was given anything, which is what comes first of it here.
	slices.SortStableFunc(p.given, func(a, b given) int { return cmp.Compare(a.index, b.index) })
	moves := map[string][]move{}
	for i, g := range p.given {
		if i == 0 || p.given[i-1].index != g.index {
			zone := p.hosts[g.index].Zone
			moves[zone] = append(moves[zone], move{g.from, p.rank(g.index)})
			p.count[g.index] = 0
		}
	}
	for i := range p.zones {
		z := &p.zones[i]
		z.apply(moves[p.hosts[z.order[0].index()].Zone])
	}
}

// move is a host's way in the order.
type move struct{ from, to rank }

func (z *zone) apply(moves []move) {
	if len(moves) <= few {
		for _, m := range moves {
			z.move(m)
		}
		return
	}
	slices.SortFunc(moves, func(a, b move) int { return cmp.Compare(a.from, b.from) })
	kept, gone := make([]rank, 0, len(z.order)), moves
	for _, r := range z.order {
		if len(gone) > 0 && gone[0].from == r {
			gone = gone[1:]
			continue
		}
		kept = append(kept, r)
	}
	fresh := make([]rank, len(moves))
	for i, m := range moves {
		fresh[i] = m.to
	}
	slices.Sort(fresh)
	z.order = merge(z.order[:0], kept, fresh)
}

func (z *zone) move(m move) {
	i, _ := slices.BinarySearch(z.order, m.from)
	j, _ := slices.BinarySearch(z.order, m.to)
	if j > i {
		copy(z.order[i:j-1], z.order[i+1:j])
		z.order[j-1] = m.to
		return
	}
	copy(z.order[j+1:i+1], z.order[j:i])
	z.order[j] = m.to
}

// merge appends two ascending lists to dst as one.
func merge(dst, a, b []rank) []rank {
	for len(a) > 0 && len(b) > 0 {
		if a[0] < b[0] {
			dst, a = append(dst, a[0]), a[1:]
		} else {
			dst, b = append(dst, b[0]), b[1:]
		}
	}
	return append(append(dst, a...), b...)
}
