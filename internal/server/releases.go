package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

func (c *control) CreateRelease(ctx context.Context, req *connect.Request[pb.CreateReleaseRequest]) (*connect.Response[pb.CreateReleaseResponse], error) {
	created, err := c.checkRelease(req.Msg)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	id := release.ID(created.Release)
	for {
		var have *fleet.Release
		c.ledger.read(func(st *fleet.State) { have = st.Release(id) })
		if have != nil {
			return c.existingRelease(ctx, have, created.Sources)
		}
		err = c.ledger.append(ctx, actorOf(ctx), "", created)
		if errors.Is(err, fleet.ErrExists) {
			continue // somebody else was faster; it is the same release
		}
		if err != nil {
			return nil, c.onWire(ctx, err)
		}
		c.ledger.read(func(st *fleet.State) { have = st.Release(id) })
		return connect.NewResponse(&pb.CreateReleaseResponse{Release: releaseProto(have, false)}), nil
	}
}

// existingRelease answers a repeated creation. The places where the image was found just now come first:
// they are known to work.
func (c *control) existingRelease(ctx context.Context, have *fleet.Release, sources []string) (*connect.Response[pb.CreateReleaseResponse], error) {
	merged := slices.Clone(sources)
	for _, s := range have.Sources {
		if !slices.Contains(merged, s) && len(merged) < maxSources {
			merged = append(merged, s)
		}
	}
	if !slices.Equal(merged, have.Sources) {
		if err := c.ledger.append(ctx, actorOf(ctx), "", &fleet.ReleaseSourced{Release: string(have.ID), Sources: merged}); err != nil {
			return nil, c.onWire(ctx, err)
		}
		c.ledger.read(func(st *fleet.State) { have = st.Release(have.ID) })
	}
	return connect.NewResponse(&pb.CreateReleaseResponse{Release: releaseProto(have, false), Existed: true}), nil
}

// checkRelease makes an event of a request, trusting none of its claims that can be computed.
func (s *Server) checkRelease(req *pb.CreateReleaseRequest) (*fleet.ReleaseCreated, error) {
	m, err := s.readManifest(req)
	if err != nil {
		return nil, err
	}
	image, err := release.ParseImageDigest(req.GetImage())
	if err != nil {
		return nil, refuse(connect.CodeInvalidArgument, "the image is not pinned: %w", err)
	}
	if err := checkSources(req.GetSources()); err != nil {
		return nil, refuse(connect.CodeInvalidArgument, "%w", err)
	}
	platforms, err := checkPlatforms(string(image), m, req.GetPlatforms())
	if err != nil {
		return nil, refuse(connect.CodeInvalidArgument, "%w", err)
	}
	created := &fleet.ReleaseCreated{
		Release: string(release.New(image, m).ID()), App: m.Name, Image: string(image), ManifestHash: string(m.Hash()),
		ManifestSource: string(req.GetManifest()), ManifestCanonical: string(m.Canonical()), Sources: req.GetSources(), Platforms: platforms,
	}
	payload, err := fleet.Encode(created)
	if err != nil {
		return nil, err
	}
	if len(payload) > eventlog.MaxPayload {
		return nil, refuse(connect.CodeInvalidArgument, "manifest, image manifests and image configs take %d bytes in the log, the most is %d", len(payload), eventlog.MaxPayload)
	}
	return created, nil
}

const maxSources = 8

// checkSources accepts "host/repository". A tag has no place there: it may move.
func checkSources(sources []string) error {
	if len(sources) == 0 || len(sources) > maxSources {
		return fmt.Errorf("%d sources of the image, want 1 to %d", len(sources), maxSources)
	}
	for _, s := range sources {
		host, repository, ok := strings.Cut(s, "/")
		if !ok || host == "" || repository == "" || len(s) > 512 || strings.ContainsAny(s, "@ \t\r\n") || strings.Contains(repository, ":") {
			return fmt.Errorf("source %q is not of the form host/repository, without a tag and without a digest", s)
		}
	}
	return nil
}

// list puts problems into one line each.
func list(problems manifest.Problems) string {
	var b strings.Builder
	for n, p := range problems {
		if n > 0 {
			b.WriteString("\n")
		}
		if p.Line > 0 {
			fmt.Fprintf(&b, "%d:%d: ", p.Line, p.Column)
		}
		fmt.Fprintf(&b, "%s %s: %s", p.Code, p.Key, p.Message)
		if p.Fix != "" {
			fmt.Fprintf(&b, " (%s)", p.Fix)
		}
	}
	return b.String()
}

func (c *control) GetRelease(ctx context.Context, req *connect.Request[pb.GetReleaseRequest]) (*connect.Response[pb.GetReleaseResponse], error) {
	var (
		r   *fleet.Release
		err error
	)
	c.ledger.read(func(st *fleet.State) {
		r, err = findRelease(ctx, st, req.Msg.GetRelease())
		if err == nil && !seesRelease(ctx, st, r) {
			err = noRelease(req.Msg.GetRelease())
		}
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.GetReleaseResponse{Release: releaseProto(r, false)}), nil
}

func noRelease(ref string) error {
	return refuse(connect.CodeNotFound, "release %s does not exist: see `pinnace release list`", cut(ref))
}

// findRelease finds a release by its id, or by the beginning of it in the form that people see. By the beginning only among
// those that the caller sees. The whole id is computed from what is in the release: who has it may put the release into an
// environment of its own, wherever else it is.
func findRelease(ctx context.Context, st *fleet.State, ref string) (*fleet.Release, error) {
	if id, err := release.ParseID(ref); err == nil {
		if r := st.Release(id); r != nil {
			return r, nil
		}
		return nil, noRelease(ref)
	}
	digits, ok := strings.CutPrefix(ref, "rel-")
	if !ok || len(digits) < 6 || strings.Trim(digits, "0123456789abcdef") != "" {
		return nil, refuse(connect.CodeInvalidArgument, "%q is not a release: want rel- and at least 6 hexadecimal digits, or the whole sha256:… id", ref)
	}
	found := slices.DeleteFunc(st.ReleasesByPrefix(digits), func(r *fleet.Release) bool { return !seesRelease(ctx, st, r) })
	switch len(found) {
	case 0:
		return nil, noRelease(ref)
	case 1:
		return found[0], nil
	}
	var ids []string
	for _, r := range found {
		ids = append(ids, fmt.Sprintf("%s (%s)", r.ID, r.App))
	}
	return nil, refuse(connect.CodeInvalidArgument, "%s may be any of %s: give more digits", ref, strings.Join(ids, ", "))
}

func (c *control) ListReleases(ctx context.Context, req *connect.Request[pb.ListReleasesRequest]) (*connect.Response[pb.ListReleasesResponse], error) {
	out := &pb.ListReleasesResponse{}
	var err error
	c.ledger.read(func(st *fleet.State) {
		newestFirst := func(r *fleet.Release) string { return fmt.Sprintf("%020d", math.MaxUint64-r.Seq) }
		out.Releases, out.NextPageToken, err = pageOf(req.Msg, visibleReleases(ctx, st, req.Msg.GetApp()), newestFirst, func(r *fleet.Release) *pb.Release { return releaseProto(r, true) })
	})
	return connect.NewResponse(out), err
}

// releaseProto translates a release; brief leaves the documents out.
func releaseProto(r *fleet.Release, brief bool) *pb.Release {
	out := &pb.Release{
		Id: string(r.ID), App: r.App, Image: string(r.Image), Manifest: string(r.Hash), Sources: r.Sources,
		CreatedAt: timestamppb.New(r.CreatedAt), CreatedBy: r.CreatedBy,
	}
	for _, p := range r.Platforms {
		if brief {
			out.Platforms = append(out.Platforms, &pb.ReleasePlatform{Architecture: p.Architecture, ManifestDigest: p.ManifestDigest})
			continue
		}
		out.Platforms = append(out.Platforms, platformProto(p))
	}
	if !brief {
		out.ManifestSource, out.ManifestCanonical = []byte(r.Source), []byte(r.Canonical)
	}
	return out
}

func platformProto(p fleet.Platform) *pb.ReleasePlatform {
	return &pb.ReleasePlatform{
		Architecture: p.Architecture, ManifestDigest: p.ManifestDigest, ImageManifest: p.ImageManifest, ImageConfig: p.ImageConfig,
	}
}
