package main

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
)

// hintedError is an error with a way out.
type hintedError struct {
	err  error
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() }
func (e *hintedError) Unwrap() error { return e.err }

// hintOf returns the hint of an error, or an empty string.
func hintOf(err error) string {
	var hinted *hintedError
	if errors.As(err, &hinted) {
		return hinted.hint
	}
	return ""
}

// usageError is an error in how the command was called.
type usageError struct{ error }

func usageErrorf(format string, args ...any) error {
	return &hintedError{usageError{fmt.Errorf(format, args...)}, "chargetrace -h lists the flags"}
}

// writeError adds a way out to an error of an output.
func (cfg *config) writeError(err error) error {
	switch {
	case isBrokenPipe(err) && len(cfg.out.outputs) > 1:
		// Said aloud, for they are not whole.
		return &hintedError{fmt.Errorf("an output is not read any more (%v)", err), "the others end there too"}
	case errors.Is(err, syscall.ENOSPC) && cfg.keepsForks():
		return &hintedError{err, "the disk is full; what was recorded until then can be played"}
	case errors.Is(err, syscall.ENOSPC):
		return &hintedError{err, "the disk is full"}
	}
	return err
}

// isBrokenPipe reports whether an error says that nobody reads an output any more,
// and nothing else.
func isBrokenPipe(err error) bool {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(several.Unwrap(), func(err error) bool { return !isBrokenPipe(err) })
	}
	if inner := errors.Unwrap(err); inner != nil {
		return isBrokenPipe(inner)
	}
	return err == syscall.EPIPE
}
