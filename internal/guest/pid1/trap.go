//go:build linux && !pinnacetrap

package pid1

// trap is a place where a test build can panic; one has the build tag pinnacetrap.
func trap(string) {}
