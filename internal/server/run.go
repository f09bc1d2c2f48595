package server

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/release"
	"github.com/pinnacehq/pinnace/internal/scheduler"
)

const (
	// runTimeout is for how long a one-off may be there whose caller did not say.
	runTimeout = time.Hour
	// maxRunArgs and maxRunBytes bound the command of a one-off: its words, and their bytes in all.
	maxRunArgs  = 1024
	maxRunBytes = 64 << 10
	// sealedRun is what the command of a one-off is sealed as, with runArgv as the only key of its values.
	sealedRun = "command of a one-off"
	runArgv   = "argv"
)

// StartRun places a one-off at once, or says why there is no place: it is not kept for later, when nobody may wait for it.
func (c *control) StartRun(ctx context.Context, req *connect.Request[pb.StartRunRequest]) (*connect.Response[pb.StartRunResponse], error) {
	event, err := runAskedFor(req.Msg)
	if err != nil {
		return nil, err
	}
	key := requestKey("run", req.Msg.GetIdempotencyKey())
	if i, err := c.startedRun(ctx, key, event, req.Msg.GetArgv()); err != nil || i != nil {
		return connect.NewResponse(&pb.StartRunResponse{Instance: i}), err
	}
	c.ledger.read(func(st *fleet.State) { err = c.settleRun(ctx, st, req.Msg.GetRelease(), event) })
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	if event.Instance, err = c.newID(event.App); err != nil {
		return nil, c.onWire(ctx, err)
	}
	repeated, err := c.startRun(ctx, key, event, req.Msg.GetArgv())
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	if repeated { // by the same request, sent twice at the same time
		i, err := c.startedRun(ctx, key, event, req.Msg.GetArgv())
		return connect.NewResponse(&pb.StartRunResponse{Instance: i}), err
	}
	out := &pb.StartRunResponse{}
	c.ledger.read(func(st *fleet.State) {
		if i := st.Instance(event.Instance); i != nil {
			out.Instance = c.instanceProto(st, i, c.now())
		}
	})
	return connect.NewResponse(out), nil
}

// runAskedFor is the event of a one-off as far as the request alone tells.
func runAskedFor(req *pb.StartRunRequest) (*fleet.RunStarted, error) {
	argv := req.GetArgv()
	if len(argv) == 0 || argv[0] == "" {
		return nil, refuse(connect.CodeInvalidArgument, "there is no command")
	}
	size := 0
	for _, word := range argv {
		if strings.ContainsRune(word, 0) {
			return nil, refuse(connect.CodeInvalidArgument, "a word of the command has a NUL in it")
		}
		size += len(word)
	}
	if len(argv) > maxRunArgs || size > maxRunBytes {
		return nil, refuse(connect.CodeInvalidArgument, "a command of %d words and %d bytes: the most is %d and %d; a file in the image or a secret can hold more", len(argv), size, maxRunArgs, maxRunBytes)
	}
	timeout := time.Duration(req.GetTimeoutMs()) * time.Millisecond
	switch {
	case req.GetTimeoutMs() == 0:
		timeout = runTimeout
	case req.GetTimeoutMs() < fleet.MinRunTimeout.Milliseconds() || req.GetTimeoutMs() > fleet.MaxRunTimeout.Milliseconds():
		return nil, refuse(connect.CodeInvalidArgument, "a timeout of %d ms: want %s to %s", req.GetTimeoutMs(), fleet.MinRunTimeout, fleet.MaxRunTimeout)
	}
	return &fleet.RunStarted{
		Environment: req.GetEnvironment(), App: req.GetApp(), Program: cut(argv[0]), Arguments: len(argv) - 1, TimeoutMilli: timeout.Milliseconds(),
	}, nil
}

// startedRun is the one-off of a request that is made again; nil when it is the first.
func (c *control) startedRun(ctx context.Context, key string, event *fleet.RunStarted, argv []string) (*pb.Instance, error) {
	was, repeated, err := once(ctx, c, key, func(p *fleet.RunStarted) bool {
		if p.Environment != event.Environment || p.App != event.App || p.Program != event.Program || p.Arguments != event.Arguments || p.TimeoutMilli != event.TimeoutMilli {
			return false
		}
		// The whole of the command is known as long as it is there.
		known, err := c.runCommand(ctx, p.Sealed, p.Environment, p.Instance)
		return err != nil || slices.Equal(known, argv)
	})
	if err != nil || !repeated {
		return nil, err
	}
	var i *pb.Instance
	c.ledger.read(func(st *fleet.State) {
		if known := st.Instance(was.Instance); known != nil {
			i = c.instanceProto(st, known, c.now())
		}
	})
	if i == nil {
		return nil, refuse(connect.CodeNotFound, "one-off %s of this request ended long ago: `pinnace events` tells how", was.Instance)
	}
	return i, nil
}

// settleRun finds out what a one-off runs, and with which settings: those of the live deployment for its release, and
// those that a deployment would have now for another one.
func (c *control) settleRun(ctx context.Context, st *fleet.State, ref string, event *fleet.RunStarted) error {
	app, err := appIn(st, event.Environment, event.App)
	if err != nil {
		return err
	}
	live := st.Deployment(app.Live)
	var r *fleet.Release
	switch {
	case ref != "":
		if r, err = findRelease(ctx, st, ref); err != nil {
			return err
		}
		if r.App != app.Name {
			return refuse(connect.CodeInvalidArgument, "release %s is of app %s, not of %s", r.ID.Short(), r.App, app.Name)
		}
	case live == nil || live.Count == 0:
		return refuse(connect.CodeFailedPrecondition, "nothing of %s is live in %s: name a release to run it of\nhint: pinnace release list %s; pinnace run -a %s --release rel-… -- COMMAND", app.Name, app.Environment, app.Name, app.Name)
	default:
		r = st.Release(live.Release)
	}
	if problems := r.Manifest.Unsupported(); problems.HasErrors() {
		return refuse(connect.CodeInvalidArgument, "release %s of %s is valid, but this version of Pinnace cannot run it:\n%s", r.ID.Short(), r.App, list(problems.Errors()))
	}
	event.Release = string(r.ID)
	if live != nil && live.Release == r.ID && live.Count > 0 {
		event.Vars, event.Secrets = maps.Clone(live.Vars), maps.Clone(live.Secrets)
		return nil
	}
	if event.Vars, err = varsFor(st.Environment(event.Environment), r.Manifest); err != nil {
		return err
	}
	event.Secrets, err = secretsFor(st, event.Environment, r.Manifest)
	return err
}

// startRun seals the command, finds a host and appends the event. Of a request that was made before it keeps nothing.
func (c *control) startRun(ctx context.Context, key string, event *fleet.RunStarted, argv []string) (repeated bool, err error) {
	words, err := json.Marshal(argv)
	if err != nil {
		return false, errors.New("seal the command: it cannot be encoded") // its text could have some of it
	}
	what := sealedText{Kind: sealedRun, Environment: event.Environment, Name: event.Instance, Values: map[string][]byte{runArgv: words}}
	c.putting.Lock()
	defer c.putting.Unlock()
	if event.Sealed, err = c.seal(ctx, what); err != nil {
		return false, err
	}
	event.Recipient = c.opts.Keys.Recipient()
	c.placing.Lock()
	defer c.placing.Unlock()
	c.ledger.read(func(st *fleet.State) {
		if _, err = environmentIn(st, event.Environment); err != nil {
			return
		}
		var places []scheduler.Placement
		if places, err = c.scheduleTask(st, event.Environment, st.Release(release.ID(event.Release)), firstOrdinals(1), c.now()); err == nil {
			event.Host = places[0].Host
		}
	})
	if err != nil {
		c.removeSealed(ctx, event.Sealed)
		return false, err
	}
	repeated, err = c.ledger.appendOnce(ctx, actorOf(ctx), key, event)
	if repeated || isRejected(err) { // after any other error the event may be there
		c.removeSealed(ctx, event.Sealed)
	}
	return repeated, err
}

// runCommand opens the command of a one-off.
func (s *Server) runCommand(ctx context.Context, sealed, environment, instance string) ([]string, error) {
	values, err := s.unseal(ctx, sealed, sealedText{Kind: sealedRun, Environment: environment, Name: instance})
	if err != nil {
		return nil, err
	}
	return runWords(values)
}

func runWords(values map[string][]byte) ([]string, error) {
	var argv []string
	if err := json.Unmarshal(values[runArgv], &argv); err != nil || len(argv) == 0 {
		return nil, errors.New("the sealed command makes no sense") // its text could have some of it
	}
	return argv, nil
}

// StopRun asks a one-off to stop, which takes the time of its manifest.
func (c *control) StopRun(ctx context.Context, req *connect.Request[pb.StopRunRequest]) (*connect.Response[pb.StopRunResponse], error) {
	var (
		i   *fleet.Instance
		err error
	)
	c.ledger.read(func(st *fleet.State) {
		if _, err = environmentIn(st, req.Msg.GetEnvironment()); err != nil {
			return
		}
		if i, err = findInstance(st, req.Msg.GetEnvironment(), req.Msg.GetInstance()); err == nil && i.Run == nil {
			err = refuse(connect.CodeFailedPrecondition, "instance %s is not a one-off: it belongs to a deployment\nhint: pinnace stop %s", i.ID, i.App)
		}
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	key := requestKey("stop-run", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.RunStopped) bool { return p.Instance == i.ID })
	if err != nil {
		return nil, err
	}
	if !repeated && i.Serves() {
		// That it has ended meanwhile, or is stopping, is what was asked for.
		err := c.ledger.append(ctx, actorOf(ctx), key, &fleet.RunStopped{Instance: i.ID, Reason: "asked to by " + actorOf(ctx)})
		if err != nil && !isRejected(err) {
			return nil, c.onWire(ctx, err)
		}
	}
	out := &pb.StopRunResponse{}
	c.ledger.read(func(st *fleet.State) {
		if now := st.Instance(i.ID); now != nil {
			i = now
		}
		out.Instance = c.instanceProto(st, i, c.now())
	})
	return connect.NewResponse(out), nil
}

// runDetails are what is said of a one-off beside what is said of every instance.
func runDetails(r *fleet.Run) *pb.RunDetails {
	if r == nil {
		return nil
	}
	return &pb.RunDetails{
		Program: r.Program, Arguments: uint32(r.Arguments), Actor: r.Actor, Deadline: timestampOrNil(r.Deadline), StoppedBecause: r.StopReason, TimedOut: r.TimedOut,
	}
}
