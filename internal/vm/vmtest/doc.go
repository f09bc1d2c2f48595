// Package vmtest is what tests of machines need: a conformance suite that every driver has to pass, a driver
// without a hypervisor for the tests of those who use drivers (Fake), and the means to run real guests in
// tests. It is imported by tests only.
package vmtest
