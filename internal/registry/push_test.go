package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const testArtifact = "application/vnd.pinnace.test.v1+json"

func newArtifact(subject Descriptor, text string) Artifact {
	return Artifact{
		Type:        testArtifact,
		Config:      Content{MediaType: testArtifact, Bytes: []byte(`{"text":"` + text + `"}`)},
		Layers:      []Content{{MediaType: "text/plain", Bytes: []byte(text), Annotations: map[string]string{"org.opencontainers.image.title": "text"}}},
		Subject:     subject,
		Annotations: map[string]string{"org.example.text": text},
	}
}

// registries are the two kinds there are: without the referrers API, which ours is, and with it.
func registries(t *testing.T) map[string]string {
	embedded, _ := serve(t)
	api := httptest.NewServer(ggcr.New(ggcr.WithReferrersSupport(true)))
	t.Cleanup(api.Close)
	return map[string]string{"tag": embedded, "api": api.Listener.Addr().String()}
}

func TestPushedArtifactIsListed(t *testing.T) {
	for kind, addr := range registries(t) {
		t.Run(kind, func(t *testing.T) {
			img := newImage(t, "linux", "amd64")
			put(t, addr+"/shop/web:1", img)
			c, repository := newClient(t, Options{}), addr+"/shop/web"
			subject, raw, err := c.Describe(t.Context(), repository, digestString(t, img))
			if err != nil || digestOf(raw) != subject.Digest || subject.Size != int64(len(raw)) || subject.MediaType == "" {
				t.Fatalf("describe: got %+v, %v", subject, err)
			}
			if list, err := c.Referrers(t.Context(), repository, subject.Digest, testArtifact); err != nil || len(list) != 0 {
				t.Errorf("before: got %v, %v", list, err)
			}
			var digests []string
			for _, text := range []string{"one", "two", "one"} {
				digest, err := c.Push(t.Context(), repository, newArtifact(subject, text))
				if err != nil {
					t.Fatal(err)
				}
				digests = append(digests, digest)
			}
			if digests[0] != digests[2] || digests[0] == digests[1] {
				t.Errorf("digests: got %v", digests)
			}
			list, err := c.Referrers(t.Context(), repository, subject.Digest, testArtifact)
			if err != nil || len(list) != 2 {
				t.Fatalf("after: got %+v, %v", list, err)
			}
			if list, err := c.Referrers(t.Context(), repository, subject.Digest, "application/x-other"); err != nil || len(list) != 0 {
				t.Errorf("another type: got %+v, %v", list, err)
			}
			got, err := c.Artifact(t.Context(), repository, digests[1])
			if err != nil {
				t.Fatal(err)
			}
			want := newArtifact(subject, "two")
			if fmt.Sprint(*got) != fmt.Sprint(want) {
				t.Errorf("fetched:\n got %v\nwant %v", *got, want)
			}
			listedByAnother(t, repository, subject.Digest, digests[:2])
		})
	}
}

// listedByAnother asks a client that is not ours.
func listedByAnother(t *testing.T, repository, subject string, want []string) {
	t.Helper()
	ref, err := name.NewDigest(repository + "@" + subject)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]v1.Descriptor{}
	for _, d := range m.Manifests {
		got[d.Digest.String()] = d
	}
	if len(got) != len(want) {
		t.Errorf("another client lists %d, want %d", len(got), len(want))
	}
	for _, digest := range want {
		if d, ok := got[digest]; !ok || d.ArtifactType != testArtifact || d.Annotations["org.example.text"] == "" {
			t.Errorf("another client has %+v for %s", d, digest)
		}
	}
}

// What others have put into the list stays as it was, whatever it says.
func TestListKeepsEntriesOfOthers(t *testing.T) {
	addr, _ := serve(t)
	img := newImage(t, "linux", "amd64")
	put(t, addr+"/web:1", img)
	other := newImage(t, "linux", "arm64")
	put(t, addr+"/web:other", other)
	c := newClient(t, Options{})
	repo, err := c.repository(addr + "/web")
	if err != nil {
		t.Fatal(err)
	}
	digest := digestString(t, img)
	raw, err := other.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	entry := strings.TrimSuffix(descriptorOf(typeManifest, raw), "}") + `,"artifactType":"application/x-sbom","later":{"x":[1]}}`
	if _, err := c.pushManifest(t.Context(), repo, referrersTag(digest), typeIndex, indexOf(entry)); err != nil {
		t.Fatal(err)
	}
	subject, _, err := c.Describe(t.Context(), addr+"/web", digest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Push(t.Context(), addr+"/web", newArtifact(subject, "x")); err != nil {
		t.Fatal(err)
	}
	index, err := c.referrerTag(t.Context(), repo, digest, false)
	if err != nil || len(index.Manifests) != 2 {
		t.Fatalf("got %+v, %v", index, err)
	}
	if got := string(index.Manifests[0]); got != entry {
		t.Errorf("the entry of another:\n got %s\nwant %s", got, entry)
	}
}

// Two who add at once can overwrite each other's list; both look again until they find theirs.
func TestListSurvivesOverwriting(t *testing.T) {
	addr, _ := serve(t)
	img := newImage(t, "linux", "amd64")
	put(t, addr+"/web:1", img)
	subject, _, err := newClient(t, Options{}).Describe(t.Context(), addr+"/web", digestString(t, img))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		c := newClient(t, Options{})
		wg.Go(func() { _, errs[i] = c.Push(t.Context(), addr+"/web", newArtifact(subject, fmt.Sprint(i))) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestCheckBlob(t *testing.T) {
	addr, log := serve(t)
	img := newImage(t, "linux", "amd64")
	put(t, addr+"/web:1", img)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := layers[0].Digest()
	size, _ := layers[0].Size()
	c := newClient(t, Options{})
	log.ofClient()
	for _, tt := range []struct {
		digest string
		size   int64
		want   error
	}{
		{digest.String(), size, nil},
		{digest.String(), size + 1, ErrWrongContent},
		{digestOf([]byte("nothing")), 7, ErrNotFound},
		{"latest", 7, ErrWrongContent},
	} {
		if err := c.CheckBlob(t.Context(), addr+"/web", tt.digest, tt.size); !errors.Is(err, tt.want) {
			t.Errorf("%s of %d bytes: got %v, want %v", tt.digest, tt.size, err, tt.want)
		}
	}
	for _, line := range log.ofClient() {
		if strings.Contains(line, "/blobs/") && !strings.HasPrefix(line, "HEAD ") {
			t.Errorf("fetched: %s", line)
		}
	}
}

func TestPushIsRefused(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	cases := map[string]struct {
		change func(f *fakeRegistry)
		kind   error
		want   string
	}{
		"no right to write": {func(f *fakeRegistry) { f.handle("/v2/web/blobs/uploads/", status(http.StatusForbidden)) }, ErrUnauthorized, "refuses to take"},
		"upload elsewhere": {func(f *fakeRegistry) {
			f.handle("/v2/web/blobs/uploads/", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://127.0.0.1:1/v2/web/blobs/uploads/1")
				w.WriteHeader(http.StatusAccepted)
			})
		}, ErrForbidden, "127.0.0.1:1"},
		"upload nowhere": {func(f *fakeRegistry) { f.handle("/v2/web/blobs/uploads/", status(http.StatusAccepted)) }, ErrWrongContent, "where to upload"},
		"upload redirected": {func(f *fakeRegistry) {
			f.handle("/v2/web/blobs/uploads/", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://127.0.0.1:1/")
				w.WriteHeader(http.StatusTemporaryRedirect)
			})
		}, ErrForbidden, "redirects to"},
		"tag in use": {func(f *fakeRegistry) {
			f.document(referrersTag(digestOf(f.manifest)), typeManifest, f.manifest)
		}, ErrWrongContent, "is kept for a list of referrers"},
		"list that is lost": {func(f *fakeRegistry) {
			f.handle("/v2/web/manifests/"+referrersTag(digestOf(f.manifest)), func(w http.ResponseWriter, req *http.Request) {
				if req.Method == http.MethodPut {
					w.WriteHeader(http.StatusCreated)
					return
				}
				w.Header().Set("Content-Type", typeIndex)
				_, _ = w.Write(indexOf())
			})
		}, ErrUnreachable, "keeps being overwritten"},
		"list without end": {func(f *fakeRegistry) {
			f.handle("/v2/web/manifests/"+referrersTag(digestOf(f.manifest)), func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.Copy(w, io.LimitReader(zeros{}, 64<<20))
			})
		}, ErrWrongContent, "larger"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFakeRegistry(t)
			subject := Descriptor{MediaType: typeManifest, Digest: digestOf(f.manifest), Size: int64(len(f.manifest))}
			a := newArtifact(subject, "x")
			raw, err := a.manifest()
			if err != nil {
				t.Fatal(err)
			}
			f.handle("/v2/web/blobs/uploads/", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "/v2/web/blobs/uploads/1?state=s")
				w.WriteHeader(http.StatusAccepted)
			})
			f.handle("/v2/web/blobs/uploads/1", func(w http.ResponseWriter, req *http.Request) {
				b, err := io.ReadAll(req.Body)
				if err != nil || req.Method != http.MethodPut || req.URL.Query().Get("digest") != digestOf(b) || req.URL.Query().Get("state") != "s" {
					t.Errorf("upload: %s %s with %q, %v", req.Method, req.URL, b, err)
				}
				w.WriteHeader(http.StatusCreated)
			})
			f.handle("/v2/web/manifests/"+digestOf(raw), func(w http.ResponseWriter, req *http.Request) {
				if b, err := io.ReadAll(req.Body); err != nil || !bytes.Equal(b, raw) {
					t.Errorf("manifest: got %q, %v", b, err)
				}
				w.WriteHeader(http.StatusCreated)
			})
			c.change(f)
			_, err = newClient(t, Options{}).Push(t.Context(), f.addr+"/web", a)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %v with %q", err, c.kind, c.want)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestHostileReferrers(t *testing.T) {
	page := func(entries ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", typeIndex)
			_, _ = w.Write(indexOf(entries...))
		}
	}
	entry := func(digest string) string {
		return fmt.Sprintf(`{"mediaType":%q,"artifactType":%q,"digest":%q,"size":2}`, typeManifest, testArtifact, digest)
	}
	good := digestOf([]byte("{}"))
	cases := map[string]struct {
		answer http.HandlerFunc
		kind   error
		found  int
	}{
		"good":             {page(entry(good)), nil, 1},
		"not filtered":     {page(entry(good), strings.Replace(entry(good), "test", "other", 1), `"what"`), nil, 1},
		"HTML for all":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, nil, 0},
		"no JSON":          {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Type", typeIndex) }, ErrWrongContent, 0},
		"path as a digest": {page(entry("sha256:../../secrets")), ErrWrongContent, 0},
		"too many":         {page(strings.Split(strings.Repeat("{} ", maxReferrers+1), " ")[:maxReferrers+1]...), ErrWrongContent, 0},
		"pages without end": {func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Link", `<`+req.URL.Path+`?n=1>; rel="next"`)
			page(entry(good))(w, req)
		}, ErrWrongContent, 0},
		"next page elsewhere": {func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Link", `<http://127.0.0.1:1/latest/meta-data>; rel="next"`)
			page(entry(good))(w, req)
		}, ErrForbidden, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFakeRegistry(t)
			subject := digestOf(f.manifest)
			f.handle("/v2/web/referrers/"+subject, c.answer)
			list, err := newClient(t, Options{}).Referrers(t.Context(), f.addr+"/web", subject, testArtifact)
			if !errors.Is(err, c.kind) || len(list) != c.found {
				t.Errorf("got %v, %v; want %d, %v", list, err, c.found, c.kind)
			}
		})
	}
}

func TestArtifactIsVerified(t *testing.T) {
	f := newFakeRegistry(t)
	a := newArtifact(Descriptor{MediaType: typeManifest, Digest: digestOf(f.manifest), Size: int64(len(f.manifest))}, "x")
	raw, err := a.manifest()
	if err != nil {
		t.Fatal(err)
	}
	f.document("a", typeManifest, raw)
	f.blob(a.Config.Bytes)
	digest := f.blob(a.Layers[0].Bytes)
	c := newClient(t, Options{})
	if _, err := c.Artifact(t.Context(), f.addr+"/web", digestOf(raw)); err != nil {
		t.Fatal(err)
	}
	f.handle("/v2/web/blobs/"+digest, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("y")) })
	if _, err := c.Artifact(t.Context(), f.addr+"/web", digestOf(raw)); !errors.Is(err, ErrWrongContent) {
		t.Errorf("changed blob: got %v", err)
	}
	var m artifactManifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	for len(m.Layers) <= maxArtifactLayers {
		m.Layers = append(m.Layers, m.Layers[0])
	}
	many, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	f.document("many", typeManifest, many)
	if _, err := c.Artifact(t.Context(), f.addr+"/web", digestOf(many)); !errors.Is(err, ErrWrongContent) {
		t.Errorf("many blobs: got %v", err)
	}
}
