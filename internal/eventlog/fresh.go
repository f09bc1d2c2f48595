package eventlog

import "time"

// CaughtUp is when this log was last known to have all that was committed: now, when it appends; of one that follows, when
// it last could look. What was committed since may say something else.
func (l *Log) CaughtUp() time.Time {
	select {
	case <-l.leads:
		return time.Now()
	default:
	}
	if at := l.caughtUp.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// saw takes down that all was read which had been committed at a time.
func (l *Log) saw(at time.Time) { l.caughtUp.Store(&at) }
