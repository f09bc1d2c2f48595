package main

import (
	"fmt"
	"slices"
	"strings"
)

// gates are the most that pinnace may take, as a part of what another tool takes, and what it goes for.
var gates = map[string]map[string]struct{ gate, goal float64 }{
	"podman":               {"gzip": {1.0 / 7, 1.0 / 8}, "zstd": {1.0 / 7, 1.0 / 8}},
	"skopeo + umoci":       {"gzip": {1.0 / 7, 1.0 / 8}, "zstd": {1.0 / 7, 1.0 / 8}},
	"containerd overlayfs": {"gzip": {1 / 3.5, 1.0 / 4}, "zstd": {1 / 3.5, 1.0 / 4}},
	"containerd erofs":     {"gzip": {0.80, 0.70}, "zstd": {0.70, 0.60}},
}

// printTable prints medians, and how pinnace compares in the same rounds.
func printTable(list []*series) {
	fmt.Println("| tool | CPU s | min–max | wall s | min–max | peak MiB | our CPU / its | our wall / its |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	ours := list[0]
	for _, s := range list {
		if s.fault != nil {
			fmt.Printf("| %s | %s | | | | | | |\n", s.tool.name, oneLine(s.fault))
			continue
		}
		cpu, wall, memory := column(s, cpuSeconds), column(s, wallSeconds), column(s, func(c cost) float64 { return float64(c.memory) / (1 << 20) })
		fmt.Printf("| %s | %.2f | %.2f–%.2f | %.2f | %.2f–%.2f | %.0f | %s | %s |\n", s.tool.name,
			median(cpu), slices.Min(cpu), slices.Max(cpu), median(wall), slices.Min(wall), slices.Max(wall), median(memory),
			ratio(ours, s, cpuSeconds), ratio(ours, s, wallSeconds))
	}
}

// oneLine is the end of a message, which says why.
func oneLine(err error) string {
	text := strings.NewReplacer("|", "/", "\n", " ").Replace(err.Error())
	if len(text) > 200 {
		text = "..." + strings.ToValidUTF8(text[len(text)-200:], "")
	}
	return text
}

func cpuSeconds(c cost) float64  { return c.cpu.Seconds() }
func wallSeconds(c cost) float64 { return c.wall.Seconds() }

func column(s *series, of func(cost) float64) []float64 {
	var list []float64
	for _, c := range s.costs {
		list = append(list, of(c))
	}
	return list
}

// ratio is the median of the ratios of each round: what disturbs one round disturbs both.
func ratio(ours, its *series, of func(cost) float64) string {
	if ours == its {
		return ""
	}
	list := ratios(ours, its, of)
	if len(list) == 0 {
		return ""
	}
	r := median(list)
	return fmt.Sprintf("%.2f (1/%.1f)", r, 1/r)
}

func ratios(ours, its *series, of func(cost) float64) []float64 {
	var list []float64
	for i := range min(len(ours.costs), len(its.costs)) {
		list = append(list, of(ours.costs[i])/of(its.costs[i]))
	}
	return list
}

// judge prints how the gates stand, and gives those that were missed.
func judge(list []*series, variant string) (missed []string) {
	ours := list[0]
	for _, s := range list {
		g, ok := gates[s.tool.name][variant]
		if !ok || s.fault != nil || ours.fault != nil {
			continue
		}
		cpu, wall := ratios(ours, s, cpuSeconds), ratios(ours, s, wallSeconds)
		verdict := "met"
		if median(cpu) > g.gate {
			verdict = "MISSED"
			missed = append(missed, fmt.Sprintf("CPU against %s, %s", s.tool.name, variant))
		}
		fmt.Printf("- CPU against %s: %.3f, gate %.3f %s, goal %.3f\n", s.tool.name, median(cpu), g.gate, verdict, g.goal)
		verdict = "met"
		if median(wall) > 1 {
			verdict = "MISSED"
			missed = append(missed, fmt.Sprintf("wall time against %s, %s", s.tool.name, variant))
		}
		fmt.Printf("- wall time against %s: %.3f, gate 1 %s\n", s.tool.name, median(wall), verdict)
	}
	return missed
}
