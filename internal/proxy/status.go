package proxy

import "time"

// A Status is what the proxy is doing. Counters start with the process or, for listeners and backends, when
// they first appear in a configuration.
type Status struct {
	// Version is that of the control protocol.
	Version int `json:"version"`
	// Build is that of the program, so that an agent of another one can upgrade the proxy.
	Build     string    `json:"build,omitempty"`
	PID       int       `json:"pid"`
	StartedAt time.Time `json:"started_at"`
	// Revision is that of the configuration in force.
	Revision uint64 `json:"revision"`
	// Error says why the configuration in force would not outlive the process.
	Error string `json:"error,omitempty"`
	// Connections counts all, those included that an older proxy has kept after an upgrade: Leaving.
	Connections int              `json:"connections"`
	Leaving     int              `json:"leaving,omitempty"`
	Listeners   []ListenerStatus `json:"listeners,omitempty"`
	DNS         []DNSStatus      `json:"dns,omitempty"`
}

// A ListenerStatus tells how a Listener fares.
type ListenerStatus struct {
	ID string `json:"id"`
	// Error says why the proxy does not listen, and who holds the port if that is known; empty means that
	// it listens. It keeps trying.
	Error string `json:"error,omitempty"`
	Open  int    `json:"open"`
	Total uint64 `json:"total"`
	// Refused counts connections that were reset because no backend was active or none could be reached.
	Refused uint64 `json:"refused"`
	// TurnedAway counts clients that were closed before a backend was chosen, by the reason.
	TurnedAway *TurnedAway `json:"turned_away,omitempty"`
	// Received and Sent count the bytes from and to clients; SplicedIn and SplicedOut are those among them that
	// went from socket to socket inside the kernel.
	Received   uint64 `json:"received"`
	Sent       uint64 `json:"sent"`
	SplicedIn  uint64 `json:"spliced_in,omitempty"`
	SplicedOut uint64 `json:"spliced_out,omitempty"`
	// Datagrams are those of UDP.
	Datagrams *DatagramStatus `json:"datagrams,omitempty"`
	Backends  []BackendStatus `json:"backends,omitempty"`
}

// TurnedAway counts clients by why they were closed before a backend was chosen.
type TurnedAway struct {
	// NoName and UnknownName asked for no server name, or for one that no route has. They get the TLS alert
	// "unrecognized name".
	NoName      uint64 `json:"no_name,omitempty"`
	UnknownName uint64 `json:"unknown_name,omitempty"`
	// NotTLS and PlainHTTP spoke something else; HTTP is answered with status 400.
	NotTLS    uint64 `json:"not_tls,omitempty"`
	PlainHTTP uint64 `json:"plain_http,omitempty"`
	// Malformed ones sent what is no ClientHello, or one that is too long.
	Malformed uint64 `json:"malformed,omitempty"`
	// Slow ones took too long, Left ones went away themselves, and Evicted ones had to make room.
	Slow    uint64 `json:"slow,omitempty"`
	Left    uint64 `json:"left,omitempty"`
	Evicted uint64 `json:"evicted,omitempty"`
	// Header counts trusted load balancers that did not begin with a PROXY header.
	Header uint64 `json:"header,omitempty"`
	// ECH counts clients that sent an encrypted ClientHello, real or not, and were led by the outer name. They
	// were not turned away.
	ECH uint64 `json:"ech,omitempty"`
	// NotHost counts those who proved to be a host that is not let in, or that has its share of connections.
	NotHost uint64 `json:"not_host,omitempty"`
}

// A DatagramStatus tells how UDP fares.
type DatagramStatus struct {
	In  uint64 `json:"in"`
	Out uint64 `json:"out"`
	// Dropped counts datagrams for which there was no room or no backend.
	Dropped uint64 `json:"dropped,omitempty"`
}

// A BackendStatus tells how a Backend of one Listener fares.
type BackendStatus struct {
	ID    string       `json:"id"`
	State BackendState `json:"state"`
	// Open counts live connections: a draining backend is empty when it is 0.
	Open  int    `json:"open"`
	Total uint64 `json:"total"`
	// Failed counts attempts to connect that failed; LastError is the latest of them.
	Failed    uint64 `json:"failed"`
	LastError string `json:"last_error,omitempty"`
}

// A DNSStatus tells how a DNS server fares, in the order of Config.DNS.
type DNSStatus struct {
	Netns string `json:"netns,omitempty"`
	// Error says which addresses could not be bound and why. The proxy keeps trying.
	Error   string `json:"error,omitempty"`
	Queries uint64 `json:"queries"`
	// Dropped counts questions over the rate or over the number that may wait for the host's resolvers.
	Dropped uint64 `json:"dropped"`
}

// Listener returns the status of the listener with that id.
func (s *Status) Listener(id string) (ListenerStatus, bool) {
	for _, l := range s.Listeners {
		if l.ID == id {
			return l, true
		}
	}
	return ListenerStatus{}, false
}

// OpenTo counts the live connections to the backend with that id, over all listeners.
func (s *Status) OpenTo(backend string) int {
	n := 0
	for _, l := range s.Listeners {
		for _, b := range l.Backends {
			if b.ID == backend {
				n += b.Open
			}
		}
	}
	return n
}

// add adds what an older proxy still carries.
func (s *Status) add(old *Status) {
	s.Connections += old.Connections
	s.Leaving += old.Connections
	for i := range s.Listeners {
		l := &s.Listeners[i]
		was, ok := old.Listener(l.ID)
		if !ok {
			continue
		}
		l.Open += was.Open
		l.Received += was.Received
		l.Sent += was.Sent
		for j := range l.Backends {
			for _, b := range was.Backends {
				if b.ID == l.Backends[j].ID {
					l.Backends[j].Open += b.Open
				}
			}
		}
	}
}
