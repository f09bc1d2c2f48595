// Command pinnace-holder stands between the agent and the monitor of one machine; see internal/vm/holder.
package main

import (
	"os"

	"github.com/pinnacehq/pinnace/internal/vm/holder"
)

func main() { os.Exit(holder.Main(os.Args)) }
