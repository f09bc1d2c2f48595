package proxy

import "time"

// A Status is what the proxy is doing. Counters start with the process or, for listeners and backends, when
// they first appear in a configuration.
type Status struct {
	// Version is that of the control protocol.
	Version   int       `json:"version"`
	PID       int       `json:"pid"`
	StartedAt time.Time `json:"started_at"`
	// Revision is that of the configuration in force.
	Revision    uint64           `json:"revision"`
	Connections int              `json:"connections"`
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
	Refused  uint64          `json:"refused"`
	Backends []BackendStatus `json:"backends,omitempty"`
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
