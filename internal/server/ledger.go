package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// ledger is the event log and the state that is folded from it.
//
// There are two states. Readers see the one that holds what is committed. The other runs ahead of it by
// what the log's writer has accepted and not committed yet; an event is folded there first, and one that the
// fold refuses is never appended.
type ledger struct {
	log *eventlog.Log

	mu    sync.RWMutex
	state *fleet.State // guarded by mu

	ahead *fleet.State // owned by the log's writer
	// broken is set when a committed event could not be folded, which would be a mistake of ours.
	broken chan error
	// follow is told every committed event, with the state after its transaction.
	follow func([]entry)
	// telling is held from the fold of a transaction until it was followed.
	telling  sync.Mutex
	journals *journals
}

// entry is a committed event, decoded, with the records that it is about as they were after it.
type entry struct {
	seq     uint64
	at      time.Time
	payload fleet.Payload
	// deployment is the one that the event is about, or in whose course it happened; nil when there is none.
	deployment *fleet.Deployment
	instance   *fleet.Instance
	// hold is how long the instance must stay ready before the deployment goes on; 0 when it need not.
	hold time.Duration
}

func openLedger(ctx context.Context, opts Options, journals *journals, follow func([]entry)) (*ledger, error) {
	l := &ledger{state: fleet.New(), broken: make(chan error, 1), follow: follow, journals: journals}
	l.ahead = l.state
	log, err := eventlog.Open(ctx, opts.Engine, eventlog.Options{
		Now:      opts.Now,
		Replay:   l.replay,
		Validate: l.validate,
		OnCommit: l.onCommit,
		Discard:  l.discard,
		Follow:   opts.Follow,
		Key:      opts.LogKey,
		Fold:     l,
		Dir:      opts.DerivedDir,
		Warn:     func(err error) { opts.Logger.WarnContext(ctx, "beside the event log", "error", err) },
	})
	if err != nil {
		return nil, err
	}
	l.log = log
	return l, nil
}

func (l *ledger) replay(events []eventlog.Event) error {
	l.telling.Lock()
	defer l.telling.Unlock()
	entries, err := l.fold(events)
	if err != nil {
		return err
	}
	l.follow(entries)
	return nil
}

// validate folds a request into the state that runs ahead. It is called by the log's writer.
func (l *ledger) validate(events []eventlog.Event) error {
	if l.ahead == l.state {
		l.ahead = l.state.Clone()
		l.ahead.Track()
	}
	before := l.ahead.Seq()
	for i := range events {
		if err := l.ahead.Apply(foldable(&events[i])); err != nil {
			if undo := l.ahead.Revert(before); undo != nil {
				return undo
			}
			return err
		}
	}
	return nil
}

// onCommit folds a committed transaction into the state that readers see.
func (l *ledger) onCommit(events []eventlog.Event) {
	l.telling.Lock()
	defer l.telling.Unlock()
	entries, err := l.fold(events)
	if err != nil {
		// The same event went through validate. Nobody may read on from a state that misses it.
		select {
		case l.broken <- fmt.Errorf("fold a committed event: %w", err):
		default:
		}
		return
	}
	if l.ahead != l.state { // a follower folds what others validated
		l.ahead.Settle(events[len(events)-1].Seq)
	}
	l.follow(entries)
}

func (l *ledger) fold(events []eventlog.Event) ([]entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	entries := make([]entry, 0, len(events))
	for i := range events {
		e := foldable(&events[i])
		if err := l.state.Apply(e); err != nil {
			return nil, err
		}
		p, err := fleet.Decode(e.Type, e.TypeVersion, e.Payload)
		if err != nil {
			return nil, err
		}
		entries = append(entries, l.about(entry{seq: e.Seq, at: e.At, payload: p}))
	}
	return entries, nil
}

// about finds the records of an entry. The caller holds mu.
func (l *ledger) about(e entry) entry {
	deployment, instance := "", ""
	switch p := e.payload.(type) {
	case *fleet.DeploymentStarted:
		deployment = p.Deployment
	case *fleet.DeploymentTurnedBack:
		deployment = p.Deployment
	case *fleet.DeploymentPaused:
		deployment = p.Deployment
	case *fleet.DeploymentResumed:
		deployment = p.Deployment
	case *fleet.DeploymentSwitched:
		deployment = p.Deployment
	case *fleet.DeploymentFinished:
		deployment = p.Deployment
	case *fleet.InstancesPlanned:
		deployment = p.Deployment
	case *fleet.InstanceStarted:
		instance = p.Instance
	case *fleet.InstanceReady:
		instance = p.Instance
	case *fleet.InstanceEnded:
		instance = p.Instance
	}
	if e.instance = l.state.Instance(instance); e.instance != nil && e.instance.Run == nil {
		deployment = l.state.App(e.instance.Environment, e.instance.App).Active
	}
	e.deployment = l.state.Deployment(deployment)
	if e.instance != nil && e.deployment != nil && e.instance.Planner == e.deployment.ID {
		e.hold = l.state.Release(e.deployment.Release).Manifest.Rollout.Hold
	}
	return e
}

func (l *ledger) discard(after uint64) {
	if l.ahead == l.state {
		return
	}
	if err := l.ahead.Revert(after); err != nil {
		select {
		case l.broken <- fmt.Errorf("take back events that were not committed: %w", err):
		default:
		}
	}
}

func foldable(e *eventlog.Event) fleet.Event {
	return fleet.Event{
		Seq: e.Seq, At: time.Unix(0, e.Time).UTC(), Actor: e.Actor, Type: e.Type, TypeVersion: e.TypeVersion, Payload: e.Payload,
	}
}

// read calls fn with the committed state, which fn must not keep. Records that it finds there may be kept.
func (l *ledger) read(fn func(*fleet.State)) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	fn(l.state)
}

// awaitTold waits until all that a reader can have seen was followed too.
func (l *ledger) awaitTold() {
	l.telling.Lock()
	defer l.telling.Unlock()
}

// append adds events in one piece; key may be empty. When it returns nil they are durable and folded.
func (l *ledger) append(ctx context.Context, actor, key string, payloads ...fleet.Payload) error {
	_, err := l.appendOnce(ctx, actor, key, payloads...)
	return err
}

// appendOnce is append, and tells whether a request with that key was there before, so that nothing was added.
func (l *ledger) appendOnce(ctx context.Context, actor, key string, payloads ...fleet.Payload) (repeated bool, err error) {
	appends := make([]eventlog.Append, 0, len(payloads))
	for _, p := range payloads {
		b, err := fleet.Encode(p)
		if err != nil {
			return false, err
		}
		appends = append(appends, eventlog.Append{
			Stream: l.stream(p), Expect: eventlog.AnyVersion, Type: p.EventType(), TypeVersion: p.EventVersion(),
			Actor: actor, IdempotencyKey: key, Payload: b,
		})
	}
	decided(payloads)
	receipt, err := l.log.Append(ctx, appends...)
	recorded(payloads)
	return receipt.Repeated, err
}

// stream is what an event is about. The fold checks what an expected version would, and more, so versions
// are not expected.
func (l *ledger) stream(p fleet.Payload) string {
	switch p := p.(type) {
	case *fleet.EnvironmentCreated:
		return "env/" + p.Name
	case *fleet.AppPlaced:
		return "env/" + p.Environment
	case *fleet.VarsChanged:
		return "env/" + p.Environment
	case *fleet.HostJoined:
		return "host/" + p.Host
	case *fleet.HostDrainStarted:
		return "host/" + p.Host
	case *fleet.HostDrainEnded:
		return "host/" + p.Host
	case *fleet.HostRemoved:
		return "host/" + p.Host
	case *fleet.TokenCreated:
		return "token/" + p.Token
	case *fleet.TokenRevoked:
		return "token/" + p.Token
	case *fleet.JoinAllowed:
		return "join/" + p.Join
	case *fleet.HostAdmitted:
		return "host/" + p.Host
	case *fleet.HostRevoked:
		return "host/" + p.Host
	case *fleet.ReleaseCreated:
		return "release/" + p.Release
	case *fleet.ReleaseSourced:
		return "release/" + p.Release
	case *fleet.DeploymentStarted:
		return "deployment/" + p.Deployment
	case *fleet.DeploymentTurnedBack:
		return "deployment/" + p.Deployment
	case *fleet.DeploymentPaused:
		return "deployment/" + p.Deployment
	case *fleet.DeploymentResumed:
		return "deployment/" + p.Deployment
	case *fleet.DeploymentSwitched:
		return "deployment/" + p.Deployment
	case *fleet.DeploymentFinished:
		return "deployment/" + p.Deployment
	case *fleet.InstancesPlanned:
		return "deployment/" + p.Deployment
	case *fleet.InstanceStarted:
		return "instance/" + p.Instance
	case *fleet.InstanceReady:
		return "instance/" + p.Instance
	case *fleet.InstanceEnded:
		return "instance/" + p.Instance
	case *fleet.ExecRequested:
		return "instance/" + p.Instance
	case *fleet.SecretPut:
		return "env/" + p.Environment
	case *fleet.SecretRevoked:
		return "env/" + p.Environment
	case *fleet.RouteSet:
		return "env/" + p.Environment
	case *fleet.RouteUnset:
		return "env/" + p.Environment
	case *fleet.RegistryLoggedIn:
		return "registry/" + p.Registry
	case *fleet.RegistryLoggedOut:
		return "registry/" + p.Registry
	default:
		return streamOfSettings(p)
	}
}
