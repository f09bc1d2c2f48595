package image

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// agreeOnQuota makes the bounds that a process sets those of all who open the store after it: a pull by hand is
// not to fill what an agent bounds. Who sets none gets those that were set last.
func (s *Store) agreeOnQuota() error {
	path := filepath.Join(s.dir, "quota.json")
	b, err := readFile(path, 4096)
	if err != nil {
		return err
	}
	var set Quota
	if b != nil {
		if err := json.Unmarshal(b, &set); err != nil {
			return fmt.Errorf("%s is damaged; remove it, and what sets the quota sets it again: %w", path, err)
		}
	}
	if s.quota == (Quota{}) {
		s.quota = set
		return nil
	}
	if s.quota == set {
		return nil
	}
	if b, err = json.Marshal(s.quota); err != nil {
		return err
	}
	return durable.WriteFile(path, append(b, '\n'), filePerm)
}
