// List tells of every name in the tree that it runs on, a line for each, and exits with status 42. With the argument
// "sum" it tells the sha256 of these lines only. What the guest mounts over the image is left out.
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

func main() {
	nodes, err := imagetest.ListGuest("/")
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	lines := imagetest.Lines(nodes)
	if slices.Contains(os.Args[1:], "sum") {
		lines = []string{imagetest.Digest([]byte(strings.Join(lines, "\n")))}
	}
	for _, line := range lines {
		fmt.Println(line)
	}
	os.Exit(42)
}
