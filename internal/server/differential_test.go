package server

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/manifest/manifesttest"
)

// TestDifferential gives generated manifests to the API, with no hash beside them: it says the same of an invalid
// one as the CLI does, and of a valid one that its hash is missing, which it names. So nothing is ever stored.
// PINNACE_DIFFERENTIAL says how many manifests; the full size is 1000000.
func TestDifferential(t *testing.T) {
	count := 1000
	if n, err := strconv.Atoi(os.Getenv("PINNACE_DIFFERENTIAL")); err == nil {
		count = n
	}
	p := newPlane(t)
	g := manifesttest.New(uint64(count))
	valid := 0
	for i := range count {
		src := g.Manifest()
		m, problems := manifest.Parse(src)
		want := "the manifest is not valid: " + list(problems.Errors())
		if m != nil {
			valid++
			want = "the manifest hash differs: this server computes " + string(m.Hash()) + ", "
		}
		_, err := p.client.CreateRelease(t.Context(), connect.NewRequest(&pb.CreateReleaseRequest{Manifest: src}))
		refused, ok := errors.AsType[*connect.Error](err)
		if !ok || refused.Code() != connect.CodeInvalidArgument || !strings.HasPrefix(refused.Message(), want) || m == nil && refused.Message() != want {
			t.Fatalf("manifest %d: the API says %v\nthe CLI says %s\n%s", i, err, want, src)
		}
	}
	if head := p.ledger.log.Head().Seq; head != 0 {
		t.Errorf("refused requests left %d events", head)
	}
	t.Logf("%d manifests, %d of them valid", count, valid)
}
