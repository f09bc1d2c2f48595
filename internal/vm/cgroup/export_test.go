package cgroup

// WholeDisk is wholeDisk.
func WholeDisk(sys string, d Device) (Device, error) { return wholeDisk(sys, d) }
