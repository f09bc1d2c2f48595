package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestFakeRegistryIsGood(t *testing.T) {
	f := newFakeRegistry(t)
	c := newClient(t, Options{})
	image, err := c.Resolve(t.Context(), f.addr+"/web:1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Blob(t.Context(), image.Repository, digestOf(f.layer), int64(len(f.layer)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got, err := io.ReadAll(b); err != nil || string(got) != string(f.layer) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestHostileDocuments(t *testing.T) {
	other := []byte(`{"os":"linux","architecture":"amd64","more":true}`)
	index := func(entries ...string) []byte {
		return []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, typeIndex, strings.Join(entries, ",")))
	}
	entry := func(f *fakeRegistry) string {
		return strings.TrimSuffix(descriptorOf(typeManifest, f.manifest), "}") + `,"platform":{"os":"linux","architecture":"amd64"}}`
	}
	cases := map[string]struct {
		change func(*testing.T, *fakeRegistry)
		kind   error
		want   string
	}{
		"manifest without end": {func(t *testing.T, f *fakeRegistry) {
			f.handle("/v2/web/manifests/1", func(w http.ResponseWriter, _ *http.Request) { endless(t, w) })
		}, ErrWrongContent, "larger"},
		"config without end": {func(t *testing.T, f *fakeRegistry) {
			f.handle("/v2/web/blobs/"+digestOf(f.config), func(w http.ResponseWriter, _ *http.Request) { endless(t, w) })
		}, ErrWrongContent, "longer"},
		"error without end": {func(t *testing.T, f *fakeRegistry) {
			f.handle("/v2/web/manifests/1", func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusBadRequest)
				endless(t, w)
			})
		}, ErrUnreachable, ""},
		"ping without end": {func(t *testing.T, f *fakeRegistry) {
			f.handle("/v2/", func(w http.ResponseWriter, _ *http.Request) { endless(t, w) })
		}, nil, ""},
		"not JSON": {func(_ *testing.T, f *fakeRegistry) { f.document("1", typeManifest, []byte("<html>")) }, ErrWrongContent, "not readable"},
		"config of other digest": {func(_ *testing.T, f *fakeRegistry) {
			f.handle("/v2/web/blobs/"+digestOf(f.config), func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write([]byte(strings.Replace(string(f.config), "linux", "xinul", 1)))
			})
		}, ErrWrongContent, "have the digest"},
		"config shorter than declared": {func(_ *testing.T, f *fakeRegistry) {
			f.handle("/v2/web/blobs/"+digestOf(f.config), func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(f.config[:5]) })
		}, ErrWrongContent, "with 5 bytes"},
		"config that is no JSON": {func(_ *testing.T, f *fakeRegistry) {
			f.blob([]byte("text"))
			f.document("1", typeManifest, []byte(manifestOf([]byte("text"), f.layer)))
		}, ErrWrongContent, "configuration is not readable"},
		"manifest and index at once": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeManifest, []byte(strings.TrimSuffix(string(f.manifest), "}")+`,"manifests":[]}`))
		}, ErrWrongContent, "index at the same time"},
		"header contradicts": {func(_ *testing.T, f *fakeRegistry) { f.document("1", typeIndex, f.manifest) }, ErrWrongContent, "calls itself"},
		"helm chart": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeManifest, []byte(strings.Replace(string(f.manifest), "vnd.oci.image.config", "vnd.cncf.helm.config", 1)))
		}, ErrNotAnImage, "Helm chart"},
		"unknown artifact": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeManifest, []byte(strings.Replace(string(f.manifest), "vnd.oci.image.layer.v1.tar+gzip", "x-cake\x7f", 1)))
		}, ErrNotAnImage, `artifact of type "application/x-cake"`},
		"schema 1": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", "application/vnd.docker.distribution.manifest.v1+prettyjws", []byte(`{"schemaVersion":1,"fsLayers":[]}`))
		}, ErrNotAnImage, "schema 1"},
		"digest that is a path": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeManifest, []byte(strings.Replace(string(f.manifest), digestOf(f.layer), "sha256:../../../etc/passwd", 1)))
		}, ErrWrongContent, "not a sha256 digest"},
		"negative size": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeManifest, []byte(strings.Replace(string(f.manifest), fmt.Sprintf(`"size":%d}]`, len(f.layer)), `"size":-1}]`, 1)))
		}, ErrWrongContent, "size of -1"},
		"config too large": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeManifest, []byte(strings.Replace(string(f.manifest), fmt.Sprintf(`"size":%d}`, len(f.config)), `"size":5000000}`, 1)))
		}, ErrWrongContent, "size of 5000000"},
		"too many layers": {func(_ *testing.T, f *fakeRegistry) {
			l := descriptorOf("application/vnd.oci.image.layer.v1.tar", f.layer)
			f.document("1", typeManifest, []byte(strings.Replace(string(f.manifest), `"layers":[`, `"layers":[`+strings.Repeat(l+",", maxLayers), 1)))
		}, ErrWrongContent, "129 layers"},
		"index entry of other bytes": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeIndex, index(entry(f)))
			f.handle("/v2/web/manifests/"+digestOf(f.manifest), func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write([]byte(manifestOf(other, f.layer)))
			})
		}, ErrWrongContent, "have the digest"},
		"index entry of other size": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeIndex, index(strings.Replace(entry(f), `"size":`, `"size":1`, 1)))
		}, ErrWrongContent, "are declared"},
		"index called a manifest": {func(_ *testing.T, f *fakeRegistry) {
			inner := index()
			f.document("inner", typeIndex, inner)
			f.document("1", typeIndex, index(strings.TrimSuffix(descriptorOf(typeManifest, inner), "}")+`,"platform":{"os":"linux","architecture":"amd64"}}`))
		}, ErrWrongContent, "but it is an index"},
		"manifest called an index": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeIndex, index(descriptorOf(typeIndex, f.manifest)))
		}, ErrWrongContent, "which it is not"},
		"windows called linux": {func(_ *testing.T, f *fakeRegistry) {
			config := []byte(`{"os":"windows","architecture":"amd64"}`)
			f.blob(config)
			f.manifest = []byte(manifestOf(config, f.layer))
			f.document("m", typeManifest, f.manifest)
			f.document("1", typeIndex, index(entry(f)))
		}, ErrWrongContent, "its configuration says windows/amd64"},
		"nested four deep": {func(_ *testing.T, f *fakeRegistry) {
			inner := index(entry(f))
			for range 3 {
				f.document("inner", typeIndex, inner)
				inner = index(descriptorOf(typeIndex, inner))
			}
			f.document("1", typeIndex, inner)
		}, ErrWrongContent, "nested more than 3"},
		"index twice": {func(_ *testing.T, f *fakeRegistry) {
			inner := index(entry(f))
			f.document("inner", typeIndex, inner)
			d := descriptorOf(typeIndex, inner)
			f.document("1", typeIndex, index(d, d))
		}, ErrWrongContent, "twice or in itself"},
		"too many entries": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeIndex, index(slices.Repeat([]string{entry(f)}, maxEntries+1)...))
		}, ErrWrongContent, "more than 256"},
		"attestations only": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeIndex, index(strings.Replace(strings.Replace(entry(f), "linux", "unknown", 1), "amd64", "unknown", 1)))
		}, ErrNoPlatform, "nothing that runs"},
		"unlabelled entry": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", typeIndex, index(descriptorOf(typeManifest, f.manifest), descriptorOf("application/x-cake", other)))
		}, nil, ""},
		"no media types": {func(_ *testing.T, f *fakeRegistry) {
			f.document("1", "text/plain", []byte(strings.Replace(string(f.manifest), fmt.Sprintf(`"mediaType":%q,`, typeManifest), "", 1)))
		}, nil, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFakeRegistry(t)
			c.change(t, f)
			image, err := newClient(t, Options{}).Resolve(t.Context(), f.addr+"/web:1")
			if c.kind == nil {
				if err != nil || len(image.Platforms) != 1 {
					t.Errorf("got %+v, %v", image, err)
				}
				return
			}
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %v with %q", err, c.kind, c.want)
			}
			if strings.ContainsAny(err.Error(), "\x7f\n") || len(err.Error()) > 1000 {
				t.Errorf("not fit for a terminal: %q", err)
			}
		})
	}
}

func TestHostileBlobs(t *testing.T) {
	f := newFakeRegistry(t)
	want := int64(len(f.layer))
	cases := map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"longer":        {func(w http.ResponseWriter, _ *http.Request) { flush(w); endless(t, w) }, "longer"},
		"longer header": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "1000") }, "1000 bytes"},
		"shorter":       {func(w http.ResponseWriter, _ *http.Request) { flush(w); _, _ = w.Write(f.layer[:9]) }, "broke off after 9 of 22 bytes"},
		"breaks off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.FormatInt(want, 10))
			_, _ = w.Write(f.layer[:9])
		}, "unexpected EOF"},
		"stops": {func(w http.ResponseWriter, req *http.Request) {
			_, _ = w.Write(f.layer[:9])
			flush(w)
			<-req.Context().Done()
		}, "stopped sending"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f.handle("/v2/web/blobs/"+digestOf(f.layer), c.answer)
			client := newClient(t, Options{})
			client.limits.window = 200 * time.Millisecond
			blob, err := client.Blob(t.Context(), f.addr+"/web", digestOf(f.layer), want)
			if err == nil {
				_, err = io.ReadAll(blob)
				blob.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	for _, digest := range []string{"", "sha256:../x", "sha512:" + strings.Repeat("a", 128), "SHA256:" + strings.Repeat("a", 64)} {
		if _, err := newClient(t, Options{}).Blob(t.Context(), f.addr+"/web", digest, 1); !errors.Is(err, ErrWrongContent) {
			t.Errorf("digest %q: got %v", digest, err)
		}
	}
}

func flush(w http.ResponseWriter) { w.(http.Flusher).Flush() }

func FuzzParseDocument(f *testing.F) {
	f.Add([]byte(manifestOf([]byte("config"), []byte("layer"))), typeManifest)
	f.Add([]byte(`{"manifests":[{"digest":"sha256:x","platform":{"os":"linux"}}]}`), typeIndex)
	f.Fuzz(func(t *testing.T, b []byte, contentType string) {
		doc, err := parseDocument(b, contentType)
		if err == nil && !doc.isIndex() && doc.Config == nil {
			t.Error("a manifest without a configuration")
		}
		if err == nil && !json.Valid(b) {
			t.Error("not JSON")
		}
	})
}
