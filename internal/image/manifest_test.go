package image_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

func TestRefusedDocuments(t *testing.T) {
	base := func() *imagetest.Builder { return imagetest.New().Layer(imagetest.File("a", "1")) }
	manifest := func(key string, value any) *imagetest.Builder {
		return base().Manifest(func(m map[string]any) { m[key] = value })
	}
	configType := func(mediaType string) *imagetest.Builder {
		return base().Manifest(func(m map[string]any) { m["config"].(map[string]any)["mediaType"] = mediaType })
	}
	layer := func(key string, value any) *imagetest.Builder {
		return base().Manifest(func(m map[string]any) { m["layers"].([]any)[0].(map[string]any)[key] = value })
	}
	document := func(key string, value any) *imagetest.Builder {
		return base().Document(func(d map[string]any) { d[key] = value })
	}
	config := func(key string, value any) *imagetest.Builder {
		return base().Config(func(c map[string]any) { c[key] = value })
	}
	diffIDs := func(ids ...any) *imagetest.Builder {
		return document("rootfs", map[string]any{"type": "layers", "diff_ids": ids})
	}
	var tooMany []any
	for range 129 {
		tooMany = append(tooMany, imagetest.Descriptor("application/vnd.oci.image.layer.v1.tar", []byte("x")))
	}
	for name, tt := range map[string]struct {
		build *imagetest.Builder
		want  string
	}{
		"index":              {base().Manifest(func(m map[string]any) { delete(m, "layers"); m["manifests"] = []any{} }), "index of images"},
		"image and index":    {manifest("manifests", []any{}), "both an image and an index"},
		"schema 1":           {manifest("schemaVersion", 1), "schema 1"},
		"schema 3":           {manifest("schemaVersion", 3), "schemaVersion is 3"},
		"media type":         {manifest("mediaType", "application/vnd.oci.image.index.v1+json"), "not that of an image"},
		"wrong JSON types":   {manifest("layers", "many"), "not valid JSON"},
		"helm chart":         {configType("application/vnd.cncf.helm.config.v1+json"), "a Helm chart"},
		"artifact":           {configType("application/vnd.oci.empty.v1+json"), "an artifact"},
		"no config":          {configType(""), "without a config"},
		"no layers":          {manifest("layers", []any{}), "has 0 layers"},
		"129 layers":         {manifest("layers", tooMany), "has 129 layers"},
		"layer type":         {layer("mediaType", "application/vnd.in-toto+json"), "layer 1: image refused: media type"},
		"encrypted layer":    {layer("mediaType", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "encrypted"},
		"negative size":      {layer("size", -1), "size is -1"},
		"huge size":          {layer("size", 1<<60), "have more than"},
		"fractional size":    {layer("size", 1.5), "not valid JSON"},
		"digest with path":   {layer("digest", "sha256:../../../../etc/passwd"), "want sha256:"},
		"digest of sha512":   {layer("digest", "sha512:"+strings.Repeat("0", 128)), "want sha256:"},
		"upper-case digest":  {layer("digest", "sha256:"+strings.Repeat("A", 64)), "lower-case"},
		"config digest":      {base().Manifest(func(m map[string]any) { m["config"].(map[string]any)["digest"] = "sha256:" }), "config: image refused: digest"},
		"windows":            {document("os", "windows"), `operating system "windows"`},
		"no os":              {document("os", ""), "want linux"},
		"rootfs type":        {document("rootfs", map[string]any{"type": "x"}), "rootfs.type"},
		"rootfs is a list":   {document("rootfs", []int{1}), "not valid JSON"},
		"too few diffIDs":    {diffIDs(), "names 0 layers in rootfs.diff_ids, the manifest 1"},
		"diffID with path":   {diffIDs("sha256:../x"), "digest"},
		"other diffID":       {diffIDs("sha256:" + strings.Repeat("0", 64)), "but the config's rootfs.diff_ids says"},
		"Env is a string":    {config("Env", "A=b"), "not valid JSON"},
		"Cmd is a string":    {config("Cmd", "sh"), "not valid JSON"},
		"User is a number":   {config("User", 0), "not valid JSON"},
		"NUL in Env":         {config("Env", []string{"A=b\x00c"}), "NUL byte"},
		"NUL in Entrypoint":  {config("Entrypoint", []string{"\x00"}), "NUL byte"},
		"Env without a name": {config("Env", []string{"=x"}), "without a name"},
		"long WorkingDir":    {config("WorkingDir", strings.Repeat("/x", 3000)), "WorkingDir has 6000 bytes"},
		"huge config":        {config("Cmd", []string{strings.Repeat("x", 5<<20)}), "each may have"},
	} {
		t.Run(name, func(t *testing.T) {
			src := tt.build.Build()
			_, err := open(t, t.TempDir()).Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil)
			if !errors.Is(err, image.ErrRefused) || !strings.Contains(fmt.Sprint(err), tt.want) {
				t.Errorf("got %v\nwant ErrRefused with %q in it", err, tt.want)
			}
			if name != "other diffID" && src.Requests("") != 0 {
				t.Errorf("%d blobs were asked for", src.Requests(""))
			}
		})
	}
}

func TestDocumentsMustMatchTheirDigests(t *testing.T) {
	src := imagetest.New().Layer(imagetest.File("a", "1")).Build()
	s := open(t, t.TempDir())
	for name, pull := range map[string]func() error{
		"manifest": func() error {
			_, err := s.Pull(t.Context(), src, src.ManifestDigest, append(src.Manifest, ' '), src.Config, nil)
			return err
		},
		"config": func() error {
			_, err := s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, append(src.Config, ' '), nil)
			return err
		},
	} {
		if err := pull(); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s: got %v, want ErrCorrupt", name, err)
		}
	}
	for _, digest := range []string{"", "latest", "sha256:../../x", "sha256:" + strings.Repeat("g", 64)} {
		if _, _, err := s.Lookup(digest); !errors.Is(err, image.ErrRefused) {
			t.Errorf("lookup of %q: got %v, want ErrRefused", digest, err)
		}
	}
}

func TestIgnoredConfigIsToldNotFollowed(t *testing.T) {
	src := imagetest.New().Layer(imagetest.File("a", "1")).Config(func(c map[string]any) {
		c["Volumes"] = map[string]any{"/b": nil, "/a": map[string]any{}}
		c["Labels"] = map[string]any{"policy": "none"}
		c["Healthcheck"] = map[string]any{"Test": []string{"NONE"}}
		c["OnBuild"] = nil
		c["StopSignal"] = "SIGINT"
		c["Unknown"] = []int{1}
	}).Build()
	got, err := image.ParseConfig(src.Config)
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%+v %s", got.Ignored, got.StopSignal); text != "{ExposedPorts:[] Volumes:[/a /b] Labels:[policy] Healthcheck:true Shell:false OnBuild:false} SIGINT" {
		t.Error(text)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(imagetest.New().Layer().Build().Config)
	f.Add([]byte(`{"os":"linux","config":null,"rootfs":{"type":"layers"}}`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = image.ParseConfig(b)
	})
}
