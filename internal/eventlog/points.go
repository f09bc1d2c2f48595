package eventlog

import "github.com/pinnacehq/pinnace/internal/failpoint"

// Where the tests kill the process: between any two steps of which the first or the second makes something
// durable, visible or known to a caller.
var (
	batchTaken      = failpoint.New("eventlog.batch.taken")
	batchPlanned    = failpoint.New("eventlog.batch.planned")
	commitBefore    = failpoint.New("eventlog.commit.before")
	commitAfter     = failpoint.New("eventlog.commit.after")
	commitFolded    = failpoint.New("eventlog.commit.folded")
	commitPublished = failpoint.New("eventlog.commit.published")
	answerFirst     = failpoint.New("eventlog.answer.first")
	answerAll       = failpoint.New("eventlog.answer.all")

	openStored = failpoint.New("eventlog.open.stored")
	openLeads  = failpoint.New("eventlog.open.leads")
	openLoaded = failpoint.New("eventlog.open.loaded")

	checkpointBefore = failpoint.New("eventlog.checkpoint.before")
	checkpointAfter  = failpoint.New("eventlog.checkpoint.after")
	derivedBefore    = failpoint.New("eventlog.derived.before")
	derivedAfter     = failpoint.New("eventlog.derived.after")
	fillBefore       = failpoint.New("eventlog.fill.before")
	fillAfter        = failpoint.New("eventlog.fill.after")
	closeBefore      = failpoint.New("eventlog.close.before")
)
