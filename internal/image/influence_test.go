package image_test

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pinnacehq/pinnace/internal/image"
)

// An image says which process to run; everything else is the manifest's to say. This table has every field
// of the image config, OCI's and those that Docker adds, with a value that asks for as much as it can, and
// what of Config it changes. A field that the specification gets later fails the test until it has a row.
func TestWhatAnImageCanInfluence(t *testing.T) {
	none := []string(nil)
	table := map[string]struct {
		value  string
		fields []string // of image.Config
	}{
		"created":      {`"2026-01-01T00:00:00Z"`, none},
		"author":       {`"somebody"`, none},
		"architecture": {`"arm64"`, []string{"Architecture"}}, // which the index and the manifest's arch must agree with
		"variant":      {`"v9"`, none},
		"os.version":   {`"10.0"`, none},
		"os.features":  {`["win32k"]`, none},
		"history":      {`[{"created_by":"rm -rf /"}]`, none},

		"config.Entrypoint":   {`["/bin/sh"]`, []string{"Entrypoint"}},
		"config.Cmd":          {`["-c","id"]`, []string{"Cmd"}},
		"config.Env":          {`["PATH=/x","LD_PRELOAD=/evil.so","PINNACE_X=1"]`, []string{"Env"}},
		"config.WorkingDir":   {`"/srv"`, []string{"WorkingDir"}},
		"config.User":         {`"0:0"`, []string{"User"}},
		"config.StopSignal":   {`"SIGKILL"`, []string{"StopSignal"}},
		"config.ExposedPorts": {`{"22/tcp":{}}`, []string{"Ignored.ExposedPorts"}},
		"config.Volumes":      {`{"/":{},"/proc":{}}`, []string{"Ignored.Volumes"}},
		"config.Labels":       {`{"pinnace.privileged":"true","com.docker.compose.service":"x"}`, []string{"Ignored.Labels"}},
		"config.ArgsEscaped":  {`true`, none},

		// Docker's.
		"config.Healthcheck":     {`{"Test":["CMD","/bin/true"]}`, []string{"Ignored.Healthcheck"}},
		"config.Shell":           {`["/bin/evil"]`, []string{"Ignored.Shell"}},
		"config.OnBuild":         {`["RUN id"]`, []string{"Ignored.OnBuild"}},
		"config.Hostname":        {`"db"`, none},
		"config.Domainname":      {`"example.com"`, none},
		"config.MacAddress":      {`"02:42:ac:11:00:02"`, none},
		"config.NetworkDisabled": {`false`, none},
		"config.StopTimeout":     {`86400`, none},
		"config.Tty":             {`true`, none},
		"config.OpenStdin":       {`true`, none},
		"config.AttachStdin":     {`true`, none},
		"config.Image":           {`"other"`, none},
		"config.Memory":          {`68719476736`, none}, // of the time before OCI
		"config.CpuShares":       {`99999`, none},
		"config.Privileged":      {`true`, none}, // never existed; people try
		"config.HostConfig":      {`{"Privileged":true,"Binds":["/:/host"]}`, none},
		"container_config":       {`{"Cmd":["/bin/evil"],"User":"0"}`, none},
		"docker_version":         {`"99"`, none},
		"pinnace":                {`{"resources":{"memory":"256GiB"},"egress":"all"}`, none},
	}
	// These two decide whether there is an image at all, and cannot be anything else.
	fixed := []string{"os", "rootfs"}
	for _, field := range slices.Concat(jsonFields(reflect.TypeFor[specs.Image](), ""), jsonFields(reflect.TypeFor[specs.ImageConfig](), "config.")) {
		if _, ok := table[field]; !ok && !slices.Contains(fixed, field) && field != "config" {
			t.Errorf("the image specification has a field %s, and the table says nothing of it", field)
		}
	}
	baseline, err := image.ParseConfig(influenced("", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range slices.Sorted(maps.Keys(table)) {
		row := table[field]
		got, err := image.ParseConfig(influenced(field, row.value))
		if err != nil {
			t.Errorf("%s: %v", field, err)
			continue
		}
		if changed := changedFields(reflect.ValueOf(baseline), reflect.ValueOf(got), ""); !slices.Equal(changed, row.fields) {
			t.Errorf("%s = %s changes %v, want %v", field, row.value, changed, row.fields)
		}
	}
	for field, value := range map[string]string{"os": `"windows"`, "rootfs": `{"type":"bind","path":"/"}`} {
		if got, err := image.ParseConfig(influenced(field, value)); err == nil {
			t.Errorf("%s = %s is accepted: %+v", field, value, got)
		}
	}
}

// influenced is a config with one field set.
func influenced(field, value string) []byte {
	config := map[string]json.RawMessage{}
	doc := map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers"}, "config": config}
	if name, ok := strings.CutPrefix(field, "config."); ok {
		config[name] = json.RawMessage(value)
	} else if field != "" {
		doc[field] = json.RawMessage(value)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	return b
}

// jsonFields lists the names that a struct has in JSON, those of embedded structs included.
func jsonFields(t reflect.Type, prefix string) []string {
	var names []string
	for f := range t.Fields() {
		if f.Anonymous {
			names = append(names, jsonFields(f.Type, prefix)...)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, prefix+name)
	}
	return names
}

// changedFields lists the fields that differ, with those of nested structs one by one.
func changedFields(a, b reflect.Value, prefix string) []string {
	var names []string
	for f := range a.Type().Fields() {
		x, y := a.FieldByIndex(f.Index), b.FieldByIndex(f.Index)
		switch {
		case f.Type.Kind() == reflect.Struct:
			names = append(names, changedFields(x, y, prefix+f.Name+".")...)
		case !reflect.DeepEqual(x.Interface(), y.Interface()):
			names = append(names, prefix+f.Name)
		}
	}
	return names
}
