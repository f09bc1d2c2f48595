package agent

import "time"

// timing is the pace of the agent and how long it is patient. None of it is a promise to users. Tests have one
// of their own.
type timing struct {
	// heartbeat is how often the server hears that nothing has changed; what changes within reportSpacing is
	// reported together.
	heartbeat, reportSpacing time.Duration
	// call bounds one call to the server. The stream of assignments says something every 15 s; when it has
	// been quiet for silence, the connection is taken for dead. reconnect is the pause before the next try.
	call, silence, reconnect time.Duration
	// resync is how often the proxy is told everything again, and routing bounds one exchange with it.
	resync, routing time.Duration
	// pullPauses are the pauses between the tries of a pull, so there is one try more; stall is how long a
	// source may take for the next bytes. A registry client waits for a registry that asks it to, and goes on
	// after a transfer broke off; what stall is for is a source that does neither, so it is longer.
	pullPauses []time.Duration
	stall      time.Duration
	// hello is how long a guest may take from the start of its monitor to init's first word, and start how
	// long init may then take to run the workload.
	hello, start time.Duration
	// startInterval is the longest pause between two checks of an instance that has never been ready: a long
	// interval is for what runs, not for waiting until it does.
	startInterval time.Duration
	// drain is how often the connections to an instance that drains are counted.
	drain time.Duration
	// stopOnExit is the longest stop.timeout of a workload when the agent itself ends.
	stopOnExit time.Duration
	// obituary is how long a machine may take to end once nothing is heard of its guest, reset how long the
	// guest may take to shut down once its report is acknowledged, and cleanUp bounds each step of what
	// follows.
	obituary, reset, cleanUp time.Duration
	// Between the attempts of an instance there are pauses of backoffFirst, doubling up to backoffMax. When a
	// workload has run for backoffReset, the next pause is a first one.
	backoffFirst, backoffMax, backoffReset time.Duration
	// clock is how often a guest's clock is set, stats how often it is asked what its workload uses, and answer how long
	// it may take to answer either.
	clock, stats, answer time.Duration
	// volumes is how often what there is of volumes is looked at for reports.
	volumes time.Duration
	// keepLine is the pause before a log line is tried again that could not be written.
	keepLine time.Duration
	// logBeat is how often a follow without lines says that it lives, and finds out that nobody reads.
	logBeat time.Duration
	// rotate is the pause before a guest is given new secrets again that did not answer.
	rotate time.Duration
	// collect is how often images that nobody needs are looked for. Those that were used within unused stay.
	// scrub is the time from one reading of the whole store to the next.
	collect, unused, scrub time.Duration
}

func defaultTiming() timing {
	return timing{
		heartbeat: 2 * time.Second, reportSpacing: 50 * time.Millisecond,
		call: 10 * time.Second, silence: 45 * time.Second, reconnect: time.Second,
		resync: 5 * time.Second, routing: 10 * time.Second,
		pullPauses: []time.Duration{time.Second, 2 * time.Second}, stall: 7 * time.Minute,
		hello: 90 * time.Second, start: 90 * time.Second,
		startInterval: 500 * time.Millisecond,
		drain:         100 * time.Millisecond,
		stopOnExit:    10 * time.Second,
		obituary:      3 * time.Second, reset: 10 * time.Second, cleanUp: 30 * time.Second,
		backoffFirst: time.Second, backoffMax: time.Minute, backoffReset: 10 * time.Minute,
		clock: time.Minute, stats: 15 * time.Second, answer: 10 * time.Second,
		rotate: 5 * time.Second, keepLine: time.Second, volumes: 5 * time.Second,
		logBeat: 5 * time.Second,
		collect: time.Hour, unused: 24 * time.Hour, scrub: 7 * 24 * time.Hour,
	}
}
