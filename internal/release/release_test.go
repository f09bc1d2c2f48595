package release_test

import (
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

// The digests were made with sha256sum: of the words "image" and "manifest", and of descriptors written with
// printf.
var known = []struct {
	name, image, manifest, id string
}{
	{
		name:     "words",
		image:    "sha256:6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d",
		manifest: "sha256:05b3abf2579a5eb66403cd78be557fd860633a1fe2103c7642030defe32c657f",
		id:       "sha256:46b99cee70dafb4eda049e7421577dff0d4def83571b4ca8ca19d8cae73c22a3",
	},
	{
		name:     "extremes",
		image:    "sha256:" + strings.Repeat("0", 64),
		manifest: "sha256:" + strings.Repeat("f", 64),
		id:       "sha256:d4c4c7167a7f0e31fc7041884417b2bc9d4a484e94c7a1d41cdaee190b3dfe95",
	},
}

func TestID(t *testing.T) {
	for _, k := range known {
		t.Run(k.name, func(t *testing.T) {
			r := release.Release{App: "api", Image: release.ImageDigest(k.image), Manifest: manifest.Hash(k.manifest)}
			if err := r.Validate(); err != nil {
				t.Fatal(err)
			}
			want := `{"image":"` + k.image + `","manifest":"` + k.manifest + `","schema":"release.v1"}`
			if got := string(r.Descriptor()); got != want {
				t.Errorf("descriptor:\n got %s\nwant %s", got, want)
			}
			if got := string(r.ID()); got != k.id {
				t.Errorf("id: got %s, want %s", got, k.id)
			}
			if got, want := r.ID().Short(), "rel-"+k.id[7:19]; got != want {
				t.Errorf("short: got %s, want %s", got, want)
			}
		})
	}
}

func TestNewTakesNameAndHashOfTheManifest(t *testing.T) {
	m, problems := manifest.Parse(manifest.Template("shop"))
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	r := release.New(release.ImageDigest(known[0].image), m)
	if r.App != "shop" || r.Manifest != m.Hash() {
		t.Errorf("got %+v", r)
	}
}

func TestParseDigests(t *testing.T) {
	good := known[0].image
	tests := []struct {
		name, in string
		ok       bool
	}{
		{"good", good, true},
		{"empty", "", false},
		{"no algorithm", good[7:], false},
		{"upper case", strings.ToUpper(good), false},
		{"upper case hex", "sha256:" + strings.ToUpper(good[7:]), false},
		{"short", good[:70], false},
		{"long", good + "0", false},
		{"other algorithm", "sha512:" + strings.Repeat("0", 128), false},
		{"white space", good + "\n", false},
		{"not hex", "sha256:" + strings.Repeat("g", 64), false},
		{"injection", `sha256:` + strings.Repeat("0", 50) + `","schema":"x"`, false},
		{"huge", strings.Repeat("x", 1<<20), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := release.ParseImageDigest(tt.in)
			if (err == nil) != tt.ok || tt.ok && string(d) != tt.in || !tt.ok && d != "" {
				t.Errorf("ParseImageDigest: got %q, %v", d, err)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			id, err := release.ParseID(tt.in)
			if (err == nil) != tt.ok || tt.ok && string(id) != tt.in {
				t.Errorf("ParseID: got %q, %v", id, err)
			}
			_, err = manifest.ParseHash(tt.in)
			if (err == nil) != tt.ok {
				t.Errorf("manifest.ParseHash: %v", err)
			}
			r := release.Release{App: "a", Image: release.ImageDigest(tt.in), Manifest: manifest.Hash(good)}
			if err := r.Validate(); (err == nil) != tt.ok {
				t.Errorf("Validate: %v", err)
			}
		})
	}
}

func TestShortOfBrokenIDs(t *testing.T) {
	for in, want := range map[release.ID]string{"": "rel-", "sha256:ab": "rel-ab", "x": "rel-x"} {
		if got := in.Short(); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestMatches(t *testing.T) {
	id := release.ID(known[0].id)
	for ref, want := range map[string]bool{
		string(id):              true,
		id.Short():              true,
		"rel-46b99c":            true,
		"rel-46b99":             false,
		"rel-":                  false,
		"":                      false,
		"46b99cee70da":          false,
		"rel-46b99d":            false,
		"rel-" + string(id)[7:]: true,
	} {
		if got := id.Matches(ref); got != want {
			t.Errorf("%q: got %v, want %v", ref, got, want)
		}
	}
}
