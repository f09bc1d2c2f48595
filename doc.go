// Package pinnace is the root of the module and holds no code; see cmd/pinnace for the program and README.md
// for what it does.
package pinnace
