// Logcheck says whether a log kept its word to its clients. It reads an export of the log and what the clients
// wrote down, and shares no code with the log: it is written from docs/specs/eventlog.md alone.
//
//	logcheck EXPORT HISTORY...
//
// It prints what it found, and exits with 1 when anything is wrong.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: logcheck EXPORT HISTORY...")
		os.Exit(2)
	}
	report, err := run(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "logcheck:", err)
		os.Exit(1)
	}
	fmt.Println(report)
}

func run(exportPath string, historyPaths []string) (string, error) {
	log, err := readExport(exportPath)
	if err != nil {
		return "", fmt.Errorf("%s: %w", exportPath, err)
	}
	h := newHistory()
	for _, path := range historyPaths {
		if err := h.read(path); err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := h.compare(log); err != nil {
		return "", err
	}
	return fmt.Sprintf("ok: %d events; %d requests acknowledged, %d refused, %d unknown of which %d are in the log; %d events seen by readers",
		len(log), h.acknowledged, h.refused, h.unknown, h.unknownStored, len(h.seen)), nil
}
