package network

import "testing"

func BenchmarkAttach(b *testing.B) {
	w := newWorld(b)
	m := w.manager(b, b.TempDir(), "tstb")
	must[*Namespace](b)(m.EnsureEnvironment(b.Context(), "red"))
	for b.Loop() {
		must[*Attachment](b)(m.Attach(b.Context(), "red", "one", 1))
		check(b, m.Detach(b.Context(), "red", "one"))
	}
}

func BenchmarkEnvironment(b *testing.B) {
	w := newWorld(b)
	m := w.manager(b, b.TempDir(), "tstb")
	for b.Loop() {
		must[*Namespace](b)(m.EnsureEnvironment(b.Context(), "red"))
		check(b, m.RemoveEnvironment(b.Context(), "red"))
	}
}
