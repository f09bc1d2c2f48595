package importer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/importer"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// laughs is the YAML bomb: nine levels of nine aliases.
func laughs() string {
	var b strings.Builder
	b.WriteString("a: &a [x,x,x,x,x,x,x,x,x]\n")
	for c := 'b'; c <= 'i'; c++ {
		fmt.Fprintf(&b, "%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	return b.String() + "services: {x: {image: y, environment: *i}}\n"
}

func TestHostileFiles(t *testing.T) {
	deep := strings.Repeat("[", 900)
	for _, tt := range []struct {
		name   string
		format importer.Format
		src    string
		want   string // in the error; "" when it is read
	}{
		{"bomb", importer.Compose, laughs(), "more than 20000 values"},
		{"merge bomb", importer.Compose, "x: &x {<<: [" + strings.TrimSuffix(strings.Repeat("*y,", 3000), ",") + "]}\nservices: {a: {image: b}}\n", "unknown anchor"},
		{"alias of itself", importer.Compose, "services: &s {a: {image: b, x: *s}}\n", "deep"},
		{"merge of itself", importer.Compose, "services: {a: &a {image: b, <<: *a}}\n", "deep"},
		{"flow without end", importer.Compose, "services: " + deep, ""},
		{"two documents", importer.Compose, "services: {a: {image: b}}\n---\nservices: {}\n", "several YAML documents"},
		{"a key twice", importer.Compose, "services: {a: {image: b}, a: {image: c}}\n", `"a" is there twice`},
		{"a list for a key", importer.Compose, "? [a]\n: b\n", "no plain word"},
		{"a list", importer.Compose, "- a\n", "no compose file"},
		{"empty", importer.Compose, "", "empty"},
		{"no services", importer.Compose, "services: {}\n", "no service"},
		{"services that are none", importer.Compose, "services: [a]\n", "no service"},
		{"no YAML", importer.Compose, "services: {a: \x00}\n", "control characters"},
		{"tag of Python", importer.Compose, "services: {a: {image: !!python/object:os.system b, command: !x [a]}}\n", ""},
		{"number that is huge", importer.Compose, "services: {a: {image: b, mem_limit: 1e999999999, cpus: .inf, scale: 999999999999999999999999}}\n", ""},
		{"range without end", importer.Compose, "services: {a: {image: b, ports: ['1-65535:1-65535'], expose: ['1-65535']}}\n", ""},

		{"TOML twice", importer.Fly, "app = 'a'\napp = 'b'\n", "line 2"},
		{"TOML deep", importer.Fly, "a = " + deep + strings.Repeat("]", 900), "deep"},
		{"TOML deeper", importer.Fly, "a = " + strings.Repeat(deep, 3), "brackets nest"},
		{"TOML dotted", importer.Fly, strings.Repeat("a.", 20_000) + "b = 1\n", "deep"},
		{"no TOML", importer.Fly, "{}", "line 1"},
		{"an app without anything", importer.Fly, "", ""},
		{"types that are wrong", importer.Fly, "app = 1\nenv = 'x'\nhttp_service = [1]\nservices = { ports = 1 }\nvm = 'big'\nmounts = [[1]]\nprocesses = [1]\ncompute = 1979-05-27\n", ""},
		{"an infinite CPU", importer.Fly, "app = 'a'\nvm = { cpus = inf, memory = 'nan' }\n", ""},

		{"HCL deep", importer.Nomad, "a = " + strings.Repeat(deep, 3), "brackets nest"},
		{"HCL operators", importer.Nomad, "a = " + strings.Repeat("!", 200_000) + "true\n", "rows of operators"},
		{"HCL conditions", importer.Nomad, "a = " + strings.Repeat("a?b:", 50_000) + "c\n", "rows of operators"},
		{"HCL blocks", importer.Nomad, strings.Repeat("a {\n", 900) + strings.Repeat("}\n", 900), "deep"},
		{"no HCL", importer.Nomad, "job \"x\" {", "line 1"},
		{"no job", importer.Nomad, "a = 1\n", "no service"},
		{"functions", importer.Nomad, "job \"x\" { group \"g\" { task \"t\" { driver = file(\"/etc/passwd\")\n config { image = [for x in y: x]\n args = [1, true, null, -5, \"a${b}c\"] } } } }\n", "line"},
		{"functions line by line", importer.Nomad, "job \"x\" {\ngroup \"g\" {\ntask \"t\" {\ndriver = file(\"/etc/passwd\")\nenv = {\n a = \"b\"\n (c) = \"d\"\n}\nresources {\nmemory = 1 + 1\n}\n}\n}\n}\n", ""},

		{"too large", importer.Fly, strings.Repeat("#", importer.MaxSize+1), "at most"},
		{"many values", importer.Fly, "a = [" + strings.Repeat("1,", 50_000) + "]\n", "more than 20000 values"},
		{"no format", "", "", "not a format"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			r, err := importer.Convert([]byte(tt.src), tt.format, "")
			runtime.ReadMemStats(&after)
			// What is looked for is what blows up; on a busy machine everything takes longer.
			if d := time.Since(start); d > time.Minute {
				t.Errorf("took %v", d)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 512<<20 {
				t.Errorf("allocated %d MiB", n>>20)
			}
			if tt.want == "" {
				if err != nil && tt.name != "flow without end" {
					t.Errorf("got %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %+v, %v; want %q", r, err, tt.want)
			}
			if err != nil && len(err.Error()) > 2000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

// Whatever comes in, what comes out is a manifest, and fit to be shown.
func FuzzConvert(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*")
	if err != nil {
		f.Fatal(err)
	}
	formats := []importer.Format{importer.Fly, importer.Nomad, importer.Compose}
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for i, format := range formats {
			if importer.FormatOf(file) == format {
				f.Add(src, uint8(i), "")
			}
		}
	}
	f.Fuzz(func(t *testing.T, src []byte, format uint8, service string) {
		r, err := importer.Convert(src, formats[int(format)%len(formats)], service)
		if err != nil {
			return
		}
		if m, problems := manifest.Parse(r.Manifest); m == nil {
			t.Errorf("not a manifest: %v\n%s", problems.Err(), r.Manifest)
		}
		for _, n := range r.Notes {
			if n.Reason == "" {
				t.Errorf("a note without a reason: %+v", n)
			}
		}
	})
}
