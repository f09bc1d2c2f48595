package memory_test

import (
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/memory"
)

func TestEngine(t *testing.T) {
	eventlogtest.Run(t, func(*testing.T) eventlogtest.Store {
		s := memory.NewStore(eventlog.LogID{})
		return eventlogtest.Store{
			Engine: func() eventlog.Engine { return s.Engine() },
			Steal: func(t *testing.T) {
				if _, err := s.Engine().Lead(t.Context()); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}
