package main

import "github.com/pinnacehq/pinnace/internal/failpoint"

// Where the tests kill the commands that write and read backups.
var (
	backupWritten   = failpoint.New("backup.written")
	backupNamed     = failpoint.New("backup.named")
	restoreVerified = failpoint.New("restore.verified")
	restoreFilled   = failpoint.New("restore.filled")
	restoreSigned   = failpoint.New("restore.signed")
	restorePlaced   = failpoint.New("restore.placed")
)

// armFailpoint has this process killed where a test says so.
func (c *cli) armFailpoint() error {
	spec := c.getenv("PINNACE_FAILPOINT")
	if spec == "" {
		return nil
	}
	if err := failpoint.Arm(spec); err != nil {
		return fail(exitInvalid, "", "PINNACE_FAILPOINT: %w", err)
	}
	return nil
}
