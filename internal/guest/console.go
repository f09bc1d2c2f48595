package guest

import (
	"strings"
)

// consoleWord begins the line with which PID 1 puts its report on the console.
const consoleWord = "pinnace-exit"

// ConsoleLine is the report of the workload's end as a line of the console, for a host that has lost the channel. The
// nonce, which the workload does not know, tells it from what a workload might print there.
func ConsoleLine(nonce string, body []byte) string {
	return consoleWord + " " + nonce + " " + string(body)
}

// ConsoleReport looks for the report of the boot with that nonce in what came out of its console.
func ConsoleReport(console, nonce string) (Exit, bool) {
	if !validNonce(nonce) {
		return Exit{}, false
	}
	for line := range strings.Lines(console) {
		body, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), consoleWord+" "+nonce+" ")
		if !ok {
			continue
		}
		if m, err := Decode(TypeExit, []byte(body)); err == nil {
			if exit, ok := m.(Exit); ok {
				return exit, true
			}
		}
	}
	return Exit{}, false
}
