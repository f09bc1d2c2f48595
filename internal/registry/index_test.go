package registry

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// platformEntry is an index entry for a manifest that need not be there.
func platformEntry(manifest []byte, arch string) string {
	return strings.TrimSuffix(descriptorOf(typeManifest, manifest), "}") + fmt.Sprintf(`,"platform":{"os":"linux","architecture":%q}}`, arch)
}

func indexOf(entries ...string) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, typeIndex, strings.Join(entries, ","))
}

func TestSparseIndex(t *testing.T) {
	elsewhere := []byte("a manifest that was not mirrored")
	cases := map[string]struct {
		entries func(f *fakeRegistry) []string
		arch    []string // what the image has then
		missing []string
		kind    error
	}{
		"other architecture": {
			entries: func(f *fakeRegistry) []string {
				return []string{platformEntry(elsewhere, "arm64"), platformEntry(f.manifest, "amd64")}
			},
			arch: []string{"amd64"}, missing: []string{"arm64"},
		},
		"other system": {
			entries: func(f *fakeRegistry) []string {
				return []string{strings.Replace(platformEntry(elsewhere, "amd64"), "linux", "windows", 1), platformEntry(f.manifest, "amd64")}
			},
			arch: []string{"amd64"},
		},
		"nothing is there": {
			entries: func(*fakeRegistry) []string { return []string{platformEntry(elsewhere, "amd64")} },
			kind:    ErrNotFound,
		},
		// What a nested index would have had cannot be known, so the answer could be wrong.
		"nested index": {
			entries: func(f *fakeRegistry) []string {
				return []string{platformEntry(f.manifest, "amd64"), descriptorOf(typeIndex, elsewhere)}
			},
			kind: ErrNotFound,
		},
		"config of one": {
			entries: func(f *fakeRegistry) []string {
				broken := []byte(manifestOf([]byte("gone"), f.layer))
				f.document("broken", typeManifest, broken)
				return []string{platformEntry(f.manifest, "amd64"), platformEntry(broken, "arm64")}
			},
			kind: ErrNotFound,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFakeRegistry(t)
			f.document("1", typeIndex, indexOf(c.entries(f)...))
			image, err := newClient(t, Options{}).Resolve(t.Context(), f.addr+"/web:1")
			if c.kind != nil {
				if !errors.Is(err, c.kind) {
					t.Errorf("got %+v, %v; want %v", image, err, c.kind)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range image.Platforms {
				got = append(got, p.Architecture)
			}
			if !slices.Equal(got, c.arch) || !slices.Equal(image.Missing, c.missing) {
				t.Errorf("got %v, missing %v; want %v, missing %v", got, image.Missing, c.arch, c.missing)
			}
		})
	}
}

// An index cannot name itself by an honest digest, so a loop takes a registry that lies: it is found by the
// digest when the bytes are others, and by the name when an index comes again.
func TestIndexLoops(t *testing.T) {
	t.Run("back to the root", func(t *testing.T) {
		f := newFakeRegistry(t)
		root := indexOf(descriptorOf(typeIndex, []byte("placeholder")))
		forged := digestOf([]byte("placeholder"))
		f.document("1", typeIndex, root)
		f.handle("/v2/web/manifests/"+forged, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", typeIndex)
			_, _ = w.Write(root)
		})
		_, err := newClient(t, Options{}).Resolve(t.Context(), f.addr+"/web:1")
		if !errors.Is(err, ErrWrongContent) {
			t.Errorf("got %v", err)
		}
		if n := len(f.paths()); n > 4 {
			t.Errorf("%d requests: %v", n, f.paths())
		}
	})
	t.Run("a diamond", func(t *testing.T) {
		f := newFakeRegistry(t)
		bottom := indexOf(platformEntry(f.manifest, "amd64"))
		left, right := indexOf(descriptorOf(typeIndex, bottom)), indexOf(descriptorOf(typeIndex, bottom), platformEntry(f.manifest, "arm64"))
		for i, d := range [][]byte{bottom, left, right} {
			f.document(fmt.Sprint("inner", i), typeIndex, d)
		}
		f.document("1", typeIndex, indexOf(descriptorOf(typeIndex, left), descriptorOf(typeIndex, right)))
		_, err := newClient(t, Options{}).Resolve(t.Context(), f.addr+"/web:1")
		if !errors.Is(err, ErrWrongContent) || !strings.Contains(err.Error(), "twice or in itself") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("three deep is read", func(t *testing.T) {
		f := newFakeRegistry(t)
		inner := indexOf(platformEntry(f.manifest, "amd64"))
		for i := range maxDepth - 1 {
			f.document(fmt.Sprint("inner", i), typeIndex, inner)
			inner = indexOf(descriptorOf(typeIndex, inner))
		}
		f.document("1", typeIndex, inner)
		image, err := newClient(t, Options{}).Resolve(t.Context(), f.addr+"/web:1")
		if err != nil || image.Digest != digestOf(inner) || len(image.Platforms) != 1 {
			t.Errorf("got %+v, %v", image, err)
		}
	})
}
