package manifest_test

import (
	"bytes"
	"encoding/json"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/manifest/manifesttest"
)

// TestDifferential gives generated manifests to the CLI's way of reading and to the agent's: the same bytes
// always give the same verdict, the same words and the same hash, and what the agent gets is what the CLI meant.
// PINNACE_DIFFERENTIAL says how many manifests; the full size is 1000000.
func TestDifferential(t *testing.T) {
	count := 5_000
	if n, err := strconv.Atoi(os.Getenv("PINNACE_DIFFERENTIAL")); err == nil {
		count = n
	}
	const batch = 1000
	seeds := make(chan uint64)
	var workers sync.WaitGroup
	var mu sync.Mutex
	valid, total := 0, 0
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for seed := range seeds {
				g, good := manifesttest.New(seed), 0
				for i := range batch {
					if src := g.Manifest(); differential(t, src) {
						good++
					}
					if t.Failed() {
						t.Logf("seed %d, manifest %d", seed, i)
						break
					}
				}
				mu.Lock()
				valid += good
				total += batch
				mu.Unlock()
			}
		})
	}
	for seed := range uint64(count / batch) {
		seeds <- seed
	}
	close(seeds)
	workers.Wait()
	t.Logf("%d manifests, %d of them valid", total, valid)
	if valid < total*2/5 || valid > total*4/5 {
		t.Errorf("%d of %d are valid: the generator has lost its balance", valid, total)
	}
}

// differential reads one manifest in every way that there is, and reports whether it is valid.
func differential(t *testing.T, src []byte) bool {
	untouched := bytes.Clone(src)
	m, problems := manifest.Parse(src)
	again, problemsAgain := manifest.Parse(untouched)
	if !bytes.Equal(src, untouched) {
		t.Errorf("reading changes the source:\n%s", untouched)
	}
	if (m == nil) != problems.HasErrors() || (m == nil) != (again == nil) || said(t, problems) != said(t, problemsAgain) {
		t.Errorf("two verdicts: %s\n%s\n%s", said(t, problems), said(t, problemsAgain), src)
	}
	formatted, _ := manifest.Format(src)
	if m == nil {
		return false
	}
	canonical := m.Canonical()
	if m.Hash() != again.Hash() || m.Hash() != manifest.HashOf(canonical) {
		t.Errorf("two hashes of one text:\n%s", src)
	}
	agent, err := manifest.ParseCanonical(canonical)
	if err != nil {
		t.Errorf("the agent refuses what the CLI accepts: %v\n%s\n%s", err, canonical, src)
		return true
	}
	if agent.Hash() != m.Hash() || said(t, keysOf(agent.Unsupported())) != said(t, keysOf(m.Unsupported())) {
		t.Errorf("the agent reads another manifest:\n%s", src)
	}
	if other, problems := manifest.Parse(formatted); other == nil || other.Hash() != m.Hash() {
		t.Errorf("formatting gives another manifest: %v\n%s\n%s", problems, src, formatted)
	}
	if _, err := manifest.ParseCanonical(append(bytes.Clone(canonical), '\n')); err == nil {
		t.Error("the agent accepts bytes that are not canonical")
	}
	return true
}

// keysOf takes the positions away, which the agent cannot know.
func keysOf(problems manifest.Problems) manifest.Problems {
	keys := make(map[string]bool)
	for _, p := range problems {
		keys[p.Code+" "+p.Key] = true
	}
	b, _ := json.Marshal(keys) // sorted
	return manifest.Problems{{Message: string(b)}}
}

func said(t *testing.T, problems manifest.Problems) string {
	b, err := json.Marshal(problems)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}
