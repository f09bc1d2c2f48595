package sqlite

import "github.com/pinnacehq/pinnace/internal/failpoint"

// Where the tests kill the process.
var (
	createdFile    = failpoint.New("sqlite.create.file")
	createdTables  = failpoint.New("sqlite.create.tables")
	createdAll     = failpoint.New("sqlite.create.committed")
	claimed        = failpoint.New("sqlite.lead.claimed")
	began          = failpoint.New("sqlite.commit.began")
	checkedLease   = failpoint.New("sqlite.commit.lease")
	insertedSome   = failpoint.New("sqlite.commit.inserted")
	insertedAll    = failpoint.New("sqlite.commit.before")
	committed      = failpoint.New("sqlite.commit.after")
	copyBackBefore = failpoint.New("sqlite.copyback.before")
	copyBackAfter  = failpoint.New("sqlite.copyback.after")
	closedReaders  = failpoint.New("sqlite.close.readers")
	closedWriter   = failpoint.New("sqlite.close.writer")
	signedBefore   = failpoint.New("sqlite.checkpoint.before")
	signedAfter    = failpoint.New("sqlite.checkpoint.after")
)
