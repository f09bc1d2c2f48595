package main

import (
	"errors"
	"path/filepath"
)

// dirFlag is a directory, which is absolute from the moment that it is given: processes that this one starts have
// working directories of their own.
type dirFlag string

// String implements pflag.Value.
func (f *dirFlag) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *dirFlag) Type() string { return "string" }

// Set implements pflag.Value.
func (f *dirFlag) Set(text string) error {
	if text == "" {
		return errors.New("it names no directory")
	}
	path, err := filepath.Abs(text)
	*f = dirFlag(path)
	return err
}
