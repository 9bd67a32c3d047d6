//go:build !linux

package main

import (
	"errors"
	"io"
	"os"

	"chargetrace/internal/recorder"
)

// errNoTracing is the error of functions that need the Linux kernel.
var errNoTracing = &hintedError{errors.New("tracing needs Linux"), "-r FILE plays a recording on any system"}

func live(*config, []string, *child, io.Writer, io.Writer) error { return errNoTracing }

func runCommand(*config, []string, io.Reader, io.Writer, io.Writer) (int, error) {
	return 1, errNoTracing
}

func printCheck(io.Writer) error { return errNoTracing }

func playRole() {}

func saveSignals(bool) (chan os.Signal, func()) { return nil, func() {} }

// commandRunner runs the command of -exec, which applies while tracing.
type commandRunner struct{}

func newCommandRunner(*recorderFlags, io.Writer) (*commandRunner, error) { return nil, errNoTracing }

func (*commandRunner) runUrgently(s recorder.Save, verdict string) {}
func (*commandRunner) run(s recorder.Save, verdict string)         {}
func (*commandRunner) close() error                                { return nil }
