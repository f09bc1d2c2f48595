// Package manifest reads pinnace.toml: it parses, validates, fills in the defaults, and gives the canonical
// form whose sha256 is the manifest hash.
//
// Everything about a key stands in one table (table.go): its path, type, default, bounds, meaning, and what
// changing it does. The parser, the canonical form, the JSON Schema, the reference page and what `pinnace
// explain` says all come from that table, so they cannot disagree. The same Parse runs in the CLI and in the server, and the canonical bytes are read back
// through the same table.
//
// The package is strict and has no opinion of its own about time or place: no I/O, no clock, no environment
// variables. It does not know images, releases, or how many instances run; rules that need those are checked
// by whoever has them. A manifest is accepted or refused by its text alone, so the verdict never depends on
// the machine, the build, or what the platform can run so far; what it cannot run yet is told by Unsupported.
package manifest

//go:generate go run ./internal/gendoc ../../docs/specs/manifest
