package image

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/failpoint"
)

// An unfinished file is complete when it is published under its path.
type unfinished struct {
	file *os.File
	path string
}

// createAll opens an unfinished file for each path.
func (s *Store) createAll(paths ...string) ([]unfinished, error) {
	var list []unfinished
	for _, path := range paths {
		f, err := s.create()
		if err != nil {
			return nil, errors.Join(err, discardAll(list))
		}
		list = append(list, unfinished{f, path})
	}
	return list, nil
}

func discardAll(list []unfinished) error {
	var errs []error
	for _, u := range list {
		errs = append(errs, durable.Discard(u.file))
	}
	return errors.Join(errs...)
}

// publish syncs all files, at the same time, and then gives them their names, in order. It closes them in every
// case. The names are not durable before their directories are synced, for which the caller has a time of its
// own; until then a crash can take away any of them, and never leave one with less than all of its content.
func publish(list []unfinished) error {
	var syncs errgroup.Group
	for _, u := range list {
		syncs.Go(func() error {
			err := failpoint.Hit("sync", u.path)
			if err == nil {
				err = u.file.Sync()
			}
			if err != nil {
				return fmt.Errorf("sync %s: %w", u.path, err)
			}
			return nil
		})
	}
	if err := syncs.Wait(); err != nil {
		return errors.Join(err, discardAll(list))
	}
	for i, u := range list {
		err := errors.Join(u.file.Close(), durable.Rename(u.file.Name(), u.path))
		if err != nil {
			_ = os.Remove(u.file.Name()) // it is unfinished, which Open removes too
			return errors.Join(err, discardAll(list[i+1:]))
		}
	}
	return nil
}

// syncNames makes the names of layers and metadata durable, before a record says that they are there.
func (s *Store) syncNames() error {
	var syncs errgroup.Group
	for _, kind := range []string{"layers", "metadata"} {
		syncs.Go(func() error { return durable.SyncDir(s.path(kind, "")) })
	}
	return syncs.Wait()
}
