package main

import (
	"errors"
	"fmt"
	"syscall"
)

// hintedError is an error with a way out.
type hintedError struct {
	err  error
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() }
func (e *hintedError) Unwrap() error { return e.err }

// usageError is an error in how the command was called.
type usageError struct{ error }

func usageErrorf(format string, args ...any) error {
	return &hintedError{usageError{fmt.Errorf(format, args...)}, "chargetrace -h lists the flags"}
}

// writeError adds a way out to an error of an output.
func writeError(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return &hintedError{err, "the disk is full; what was written until then is whole"}
	}
	return err
}
