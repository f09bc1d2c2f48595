// Package fleet is the state of the platform: environments, hosts, releases, deployments and instances, as
// the fold of the event log.
//
// State.Apply is pure. It reads no clock, draws no random number and does no I/O; the same events give the
// same state and the same Hash on every server. It checks an event against the state before it changes
// anything, so an event that is refused leaves no trace, and one that was applied can be undone until it is
// settled. That is how an event is tried before it is appended: the server folds it into a state that runs
// ahead of the log, and appends it only when that went well.
//
// The payload types in events.go are stored for ever. A type and version that this code doesn't know is an
// error and never skipped. What fleet does not hold is what changes without a decision: whether a host is
// connected, what an instance reports now, logs and metrics. Package server keeps those.
package fleet
