package manifest

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

func mustParse(t testing.TB, src string) *Manifest {
	t.Helper()
	m, problems := Parse([]byte(src))
	if m == nil {
		t.Fatalf("refused:\n%v", problems.Err())
	}
	return m
}

func TestParseFillsInTheFields(t *testing.T) {
	m := mustParse(t, string(corpus(t, "valid")["web"]))
	want := Port{Port: 8080, Protocol: ProtocolTCP, Expose: ExposePublic, Edge: EdgeRaw, PublicPort: 80, ProxyProtocol: ProxyProtocolNone}
	if m.Ports["http"] != want {
		t.Errorf("got %+v", m.Ports["http"])
	}
	if (m.Ports["metrics"] != Port{Port: 9090, Protocol: ProtocolTCP, Expose: ExposeInternal}) {
		t.Errorf("got %+v", m.Ports["metrics"])
	}
	ready := &Probe{Type: ProbeHTTP, Port: "http", Path: "/readyz?full=1", Status: []int{200, 204}, Interval: 2 * time.Second, Timeout: time.Second, Pass: 1, Fail: 3}
	if diff := cmp.Diff(ready, m.Health.Ready); diff != "" {
		t.Error(diff)
	}
	if (m.Resources != Resources{CPUMilli: 500, MemoryBytes: 512 << 20, DiskBytes: 2 << 30}) {
		t.Errorf("got %+v", m.Resources)
	}
	if (m.Stop != Stop{Drain: 5 * time.Second, Timeout: 10 * time.Second}) || m.Restart != RestartAlways {
		t.Errorf("got %+v, %s", m.Stop, m.Restart)
	}
	if m.Entrypoint != nil || m.Command != nil || m.Arch != nil || m.Workdir != "" {
		t.Error("a default of the image is filled in")
	}
	if w := mustParse(t, string(corpus(t, "valid")["worker"])); w.Command == nil || len(w.Command) != 0 {
		t.Errorf("command = [] became %#v", w.Command)
	}
	s := mustParse(t, string(corpus(t, "valid")["secrets"])).Secrets["api"]
	if s.Mode != 0o440 || s.OnChange != "signal:SIGHUP" {
		t.Errorf("got %+v", s)
	}
}

func TestTemplate(t *testing.T) {
	m := mustParse(t, string(Template("shop")))
	if m.Name != "shop" || len(m.Unsupported()) != 0 {
		t.Errorf("%s: %v", m.Name, m.Unsupported())
	}
	uncommented := strings.Replace(string(Template("shop")), "# health", "health", 1)
	if _, problems := Parse([]byte(uncommented)); len(problems) != 0 {
		t.Errorf("with the ready check: %v", problems)
	}
	if m, _ := Parse(Template("a\"b\n")); m != nil {
		t.Error("a bad name is accepted")
	}
}

func TestParseCanonicalIsStrict(t *testing.T) {
	good := string(mustParse(t, string(corpus(t, "valid")["web"])).Canonical())
	edit := func(old, with string) string {
		t.Helper()
		if strings.Count(good, old) == 0 {
			t.Fatalf("%s is not in %s", old, good)
		}
		return strings.Replace(good, old, with, 1)
	}
	tests := map[string]struct{ in, want string }{
		"empty":            {"", "parse JSON"},
		"not an object":    {"[]", "not a JSON object"},
		"null":             {"null", "not a JSON object"},
		"cut":              {good[:len(good)-1], "parse JSON"},
		"trailing":         {good + " ", "not in canonical form"},
		"second document":  {good + good, "not in canonical form"},
		"white space":      {edit(`"name":`, `"name": `), "not in canonical form"},
		"order":            {edit(`"name":"web","network":{"egress":"all"}`, `"network":{"egress":"all"},"name":"web"`), "not in canonical form"},
		"unknown key":      {edit(`"name":`, `"nam":1,"name":`), "E101"},
		"wrong case":       {edit(`"name":`, `"Name":`), "E102"},
		"duplicate":        {edit(`"name":"web"`, `"name":"web","name":"web"`), "is there twice"},
		"default left out": {edit(`"fail":3,`, ``), "not in canonical form"},
		"null value":       {edit(`"fail":3`, `"fail":null`), "E103"},
		"float":            {edit(`"fail":3`, `"fail":3.0`), "E105"},
		"exponent":         {edit(`"fail":3`, `"fail":3e0`), "E105"},
		"minus zero":       {edit(`"drain":5000`, `"drain":-0`), "not in canonical form"},
		"unit":             {edit(`"drain":5000`, `"drain":"5s"`), "E103"},
		"size":             {edit(`"disk":2147483648`, `"disk":2147483649`), "E105"},
		"out of range":     {edit(`"port":8080`, `"port":0`), "E105"},
		"set order":        {edit(`[200,204]`, `[204,200]`), "not in canonical form"},
		"set twice":        {edit(`[200,204]`, `[200,200]`), "E105"},
		"escape":           {edit(`"name":"web"`, `"name":"we\u0062"`), "not in canonical form"},
		"empty table":      {edit(`"schema":"v1"`, `"schema":"v1","secrets":{}`), "not in canonical form"},
		"rule":             {edit(`"port":9090`, `"port":8080`), "E111"},
		"another schema":   {edit(`"schema":"v1"`, `"schema":"v2"`), "E105"},
		"deep":             {strings.Repeat(`{"a":`, 1000), "nested too deep"},
		"too big":          {strings.Repeat(" ", MaxCanonicalSize+1), "at most"},
		"toml":             {`schema = "v1"`, "parse JSON"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m, err := ParseCanonical([]byte(tt.in))
			if m != nil || err == nil {
				t.Fatalf("accepted as %s", m.Canonical())
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, want it to name %q", err, tt.want)
			}
		})
	}
}

func TestProblemsAsJSON(t *testing.T) {
	_, problems := Parse([]byte("schema = \"v1\"\nname = \"api\"\nresources = { memory = \"1GB\" }\nhealth.ready = { type = \"exec\", command = [\"x\"] }\n"))
	got, err := json.Marshal(problems)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"code":"E106","severity":"error","line":3,"column":24,"key":"resources.memory",` +
		`"message":"\"1GB\" is not a size: digits and one of KiB, MiB, GiB, TiB, such as \"512MiB\"",` +
		`"why":"sizes are in powers of 1024 and say so; MB and M are read both ways","suggestion":"\"1GiB\""}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestRender(t *testing.T) {
	src := []byte("schema = \"v1\"\nname = \"é\", # \x1b[2J\n\tuser = 5\n")
	problems := Problems{
		{Code: CodeSyntax, Severity: SeverityError, Line: 2, Column: 11, Message: "m", width: 1},
		{Code: CodeRootUser, Severity: SeverityWarning, Line: 3, Column: 9, Key: "user", Message: "m", Why: "w", Fix: "f", width: 1},
		{Code: CodeUnsupported, Severity: SeverityError, Key: "vars", Message: "m"},
	}
	var out bytes.Buffer
	problems.Render(&out, "p.toml", src, RenderOptions{Caret: true})
	want := "p.toml:2:11: E100 m\n" +
		"    2 | name = \"é\", # \uFFFD[2J\n" +
		"      |           ^\n" +
		"p.toml:3:9: W201 user: m\n" +
		"    3 | \tuser = 5\n" +
		"      | \t       ^\n" +
		"    why: w\n    fix: f\n" +
		"p.toml: E150 vars: m\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	out.Reset()
	problems[2:].Render(&out, "p.toml", nil, RenderOptions{Color: true})
	if want := "\x1b[1mp.toml\x1b[0m: \x1b[31mE150\x1b[0m vars: m\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// TestCaret checks that the mark stands below the place, as a terminal shows both.
func TestCaret(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, tt := range []struct {
		name, line    string
		column, width int
		text, mark    string
	}{
		{"plain", `a = "b"`, 5, 3, `a = "b"`, `    ^~~`},
		{"about the line's end", `a =`, 4, 1, `a =`, `   ^`},
		{"tabs before", "\ta\t= 1", 4, 1, "\ta\t= 1", "\t \t^"},
		{"wide before", "\u6f22\u5b57 = 1", 6, 1, "\u6f22\u5b57 = 1", "       ^"},
		{"wide within", "a = \"\u6f22\"", 5, 3, "a = \"\u6f22\"", "    ^~~~"},
		{"combining", "e\u0301 = 1", 6, 1, "e\u0301 = 1", "    ^"},
		{"combining, and the place itself", "e\u0301", 2, 1, "e\u0301", " ^"},
		{"full width", "\uff11 = 1", 5, 1, "\uff11 = 1", "     ^"},
		{"joined", "\U0001f469\u200d\U0001f4bb x", 5, 1, "\U0001f469\u200d\U0001f4bb x", "     ^"},
		{"escape", "\x1b[31m = 1", 1, 5, "\ufffd[31m = 1", "^~~~~"},
		{"turned around", "\u202ea = 1", 2, 1, "\ufffda = 1", " ^"},
		{"line separator", "\u2028a", 2, 1, "\ufffda", " ^"},
		{"from Windows", "a = 1\r", 5, 1, "a = 1", "    ^"},
		{"long, at its beginning", long, 2, 3, long[:160] + "…", " ^~~"},
		{"long, further on", long, 200, 4, "…" + long[:160] + "…", strings.Repeat(" ", 61) + "^~~~"},
		{"long, at its end", long, 301, 1, "…" + long[:60], strings.Repeat(" ", 61) + "^"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text, mark := Problem{Column: tt.column, width: tt.width}.caret(tt.line)
			if text != tt.text || mark != tt.mark {
				t.Errorf("got\n%q\n%q\nwant\n%q\n%q", text, mark, tt.text, tt.mark)
			}
		})
	}
}

func TestProblemsErr(t *testing.T) {
	warnings := Problems{{Code: CodeRootUser, Severity: SeverityWarning}}
	if warnings.HasErrors() || warnings.Err() != nil || len(warnings.Warnings()) != 1 || len(warnings.Errors()) != 0 {
		t.Error("a warning counts as an error")
	}
}

func TestCheckCount(t *testing.T) {
	m := mustParse(t, string(corpus(t, "valid")["postgres"]))
	if p := m.CheckCount(1); len(p) != 0 {
		t.Errorf("one instance: %v", p)
	}
	p := m.CheckCount(2)
	if len(p) != 1 || p[0].Code != CodeTooMany || p[0].Line == 0 {
		t.Errorf("two instances: %v", p)
	}
}

// TestUnsupported: what a version cannot run is named at its place, and by those too who have the canonical form only.
func TestUnsupported(t *testing.T) {
	keys := table()
	for i := range keys {
		switch keys[i].Path {
		case "secrets":
			keys[i].Pending = []string{"*"}
		case "ports.*.edge":
			keys[i].Pending = []string{EdgeSNI}
		}
	}
	real, lesser := schemaV1, compile(keys)
	schemaV1 = func() *spec { return lesser }
	t.Cleanup(func() { schemaV1 = real })
	for name, want := range map[string][]string{
		"secrets":         {"E150 secrets.api", "E150 secrets.legacy", "E150 secrets.plain"},
		"sni-passthrough": {"E150 ports.https.edge", "E150 ports.mqtts.edge"},
		"postgres":        {"E150 secrets.superuser"},
		"minimal":         nil,
	} {
		m := mustParse(t, string(corpus(t, "valid")[name]))
		again, err := ParseCanonical(m.Canonical())
		if err != nil {
			t.Fatal(err)
		}
		for _, problems := range []Problems{m.Unsupported(), again.Unsupported()} {
			var got []string
			for _, p := range problems {
				got = append(got, p.Code+" "+p.Key)
			}
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		for _, p := range m.Unsupported() {
			if p.Line == 0 {
				t.Errorf("%s: %s has no place", name, p.Key)
			}
		}
	}
}

func BenchmarkParse(b *testing.B) {
	src := sixtyLines(b)
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	for b.Loop() {
		if m, _ := Parse(src); m == nil {
			b.Fatal("refused")
		}
	}
}

// BenchmarkUnmarshal is what the TOML library alone takes for the same text.
func BenchmarkUnmarshal(b *testing.B) {
	src := sixtyLines(b)
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	for b.Loop() {
		var v map[string]any
		if err := toml.Unmarshal(src, &v); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParseRatio measures how many times as long Parse takes as the TOML library alone, in turns, so that a
// busy machine is busy for both. It fails when that is over the gate.
func BenchmarkParseRatio(b *testing.B) {
	const gate, rounds = 5.0, 20
	src := sixtyLines(b)
	var ratios []float64
	for b.Loop() {
		start := time.Now()
		for range rounds {
			Parse(src)
		}
		ours := time.Since(start)
		start = time.Now()
		for range rounds {
			var v map[string]any
			_ = toml.Unmarshal(src, &v)
		}
		ratios = append(ratios, float64(ours)/float64(time.Since(start)))
	}
	slices.Sort(ratios)
	median := ratios[len(ratios)/2]
	b.ReportMetric(median, "x-go-toml")
	if median > gate && len(ratios) > 20 {
		b.Errorf("%.1f times as long as the TOML library; the gate is %.0f", median, gate)
	}
}

func BenchmarkFormat(b *testing.B) {
	src := sixtyLines(b)
	b.ReportAllocs()
	for b.Loop() {
		Format(src)
	}
}

func BenchmarkCanonical(b *testing.B) {
	m := mustParse(b, string(sixtyLines(b)))
	b.ReportAllocs()
	for b.Loop() {
		m.Canonical()
	}
}

func sixtyLines(b *testing.B) []byte {
	src := slices.Concat(corpus(b, "valid")["web"], []byte("\n[network]\negress = \"all\"\n[secrets.a]\npath = \"/run/secrets/a\"\nmode = \"0400\"\nrequire = [\"A\", \"B\"]\n[volumes.data]\npath = \"/data\"\nsize = \"10GiB\"\nper = \"instance\"\n[stop]\nsignal = \"SIGTERM\"\ndrain = \"5s\"\ntimeout = \"30s\"\n[ports.admin]\nport = 7000\nexpose = \"none\"\n"))
	if n := bytes.Count(src, []byte("\n")); n < 58 || n > 62 {
		b.Fatalf("%d lines", n)
	}
	return src
}
