//go:build !linux

package main

import (
	"errors"
	"io"
)

// errNoTracing is the error of functions that need the Linux kernel.
var errNoTracing = &hintedError{errors.New("tracing needs Linux"), "-r FILE plays a recording on any system"}

func live(*config, []string, *child, io.Writer, io.Writer) error { return errNoTracing }

func runCommand(*config, []string, io.Reader, io.Writer, io.Writer) (int, error) {
	return 1, errNoTracing
}

func printCheck(io.Writer) error { return errNoTracing }

func playRole() {}
