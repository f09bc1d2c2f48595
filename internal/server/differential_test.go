package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/manifest/manifesttest"
)

// TestDifferential gives generated manifests to the three who read one: the CLI, the API and the agent. The API
// says the same of an invalid one as the CLI does, word by word. It comes to the same hash of a valid one, and the
// agent, which gets the canonical bytes, does too. The requests have no image, so nothing is ever stored.
// PINNACE_DIFFERENTIAL says how many manifests; the full size is 1000000.
func TestDifferential(t *testing.T) {
	count := 2000
	if n, err := strconv.Atoi(os.Getenv("PINNACE_DIFFERENTIAL")); err == nil {
		count = n
	}
	p := newPlane(t)
	client := pinnacev1connect.NewControlServiceClient(
		&http.Client{Transport: withToken{adminToken, inProcess{p.api.Config.Handler}}}, "http://in-process")
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
					if t.Failed() {
						break
					}
					src := g.Manifest()
					ok, err := threeReadings(t.Context(), client, src, i%16 == 0)
					if err != nil {
						t.Errorf("seed %d, manifest %d: %v\n%s", seed, i, err, src)
					}
					if ok {
						good++
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
	if head := p.ledger.log.Head().Seq; head != 1 { // that of the first token
		t.Errorf("refused requests left %d events", head-1)
	}
	if valid < total*2/5 || valid > total*4/5 {
		t.Errorf("%d of %d are valid: the generator has lost its balance", valid, total)
	}
	t.Logf("%d manifests, %d of them valid", total, valid)
}

// threeReadings compares what CLI, API and agent make of a manifest, and reports whether it is valid. The API is
// given the hash and must come to the same one, or, if asked is set, no hash, and must name its own.
func threeReadings(ctx context.Context, client pinnacev1connect.ControlServiceClient, src []byte, asked bool) (bool, error) {
	m, problems := manifest.Parse(src)
	req := &pb.CreateReleaseRequest{Manifest: src}
	want, exact := "the manifest is not valid: "+list(problems.Errors()), true
	switch {
	case m == nil:
	case asked:
		want, exact = "the manifest hash differs: this server (version test) computes "+string(m.Hash())+", ", false
	default:
		req.ManifestHash = string(m.Hash())
		want, exact = "the image is not pinned: ", false
	}
	_, err := client.CreateRelease(ctx, connect.NewRequest(req))
	refused, ok := errors.AsType[*connect.Error](err)
	if !ok || refused.Code() != connect.CodeInvalidArgument || !strings.HasPrefix(refused.Message(), want) || exact && refused.Message() != want {
		return m != nil, errors.New("the API says: " + errText(err) + "\nand not: " + want)
	}
	if m == nil {
		return false, nil
	}
	canonical := m.Canonical()
	agent, err := manifest.ParseCanonical(canonical)
	if err != nil {
		return true, errors.New("the agent refuses it: " + err.Error())
	}
	if agent.Hash() != m.Hash() || !bytes.Equal(agent.Canonical(), canonical) {
		return true, errors.New("the agent reads another manifest")
	}
	return true, nil
}

func errText(err error) string {
	if err == nil {
		return "nothing"
	}
	return err.Error()
}

// inProcess carries requests to a handler without a connection in between, which would be most of the work.
type inProcess struct{ handler http.Handler }

func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	defer r.Body.Close()
	answer := httptest.NewRecorder()
	p.handler.ServeHTTP(answer, r)
	_, err := io.Copy(io.Discard, r.Body)
	return answer.Result(), err
}
