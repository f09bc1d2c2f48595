// Logcheck says whether a log kept its word to its clients. It reads an export of the log and what the clients
// wrote down, and shares no code with the log: it is written from docs/specs/eventlog.md alone.
//
//	logcheck [-others] EXPORT HISTORY...
//
// With -others the log has events, too, that none of these clients asked for, such as a server's own. It prints what it found, and exits with 1 when anything is wrong.
package main

import (
	"fmt"
	"os"
)

func main() {
	args := os.Args[1:]
	others := len(args) > 0 && args[0] == "-others"
	if others {
		args = args[1:]
	}
	if len(args) < 1 {
		fmt.Fprintln(os.Stderr, "usage: logcheck [-others] EXPORT HISTORY...")
		os.Exit(2)
	}
	report, err := run(args[0], args[1:], others)
	if err != nil {
		fmt.Fprintln(os.Stderr, "logcheck:", err)
		os.Exit(1)
	}
	fmt.Println(report)
}

func run(exportPath string, historyPaths []string, others bool) (string, error) {
	log, err := readExport(exportPath)
	if err != nil {
		return "", fmt.Errorf("%s: %w", exportPath, err)
	}
	h := newHistory()
	h.others = others
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
