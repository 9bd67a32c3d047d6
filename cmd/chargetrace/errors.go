package main

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"syscall"
)

// joinedType is the type of the errors that [errors.Join] returns. Other errors that wrap
// several, as of fmt.Errorf, have a message of their own.
var joinedType = reflect.TypeOf(errors.Join(errors.ErrUnsupported))

// printError prints an error and its hint. Of joined errors with the same message it
// prints the first: a full disk fails each write, and Close.
func printError(stderr io.Writer, err error) {
	fmt.Fprintf(stderr, "chargetrace: %s\n", strings.Join(appendMessages(nil, err), "\n"))
	var hinted *hintedError
	if errors.As(err, &hinted) {
		fmt.Fprintf(stderr, "hint: %s\n", hinted.hint)
	}
}

// appendMessages appends the messages of the errors that err joins, without repeats.
func appendMessages(messages []string, err error) []string {
	if hinted, ok := err.(*hintedError); ok {
		return appendMessages(messages, hinted.err)
	}
	if reflect.TypeOf(err) == joinedType {
		for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
			messages = appendMessages(messages, e)
		}
		return messages
	}
	if m := err.Error(); !slices.Contains(messages, m) {
		messages = append(messages, m)
	}
	return messages
}

// hintedError is an error with advice for the user.
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

// writeError adds a hint to an error of an output.
func (cfg *config) writeError(err error) error {
	switch {
	case isBrokenPipe(err) && len(cfg.out.outputs) > 1:
		// No silent exit: the other outputs are incomplete.
		return &hintedError{fmt.Errorf("the reader of an output is gone (%v)", err), "the other outputs end there too"}
	case errors.Is(err, syscall.ENOSPC) && cfg.writesRecording():
		return &hintedError{err, "the disk is full; the recording up to there can be played"}
	case errors.Is(err, syscall.ENOSPC):
		return &hintedError{err, "the disk is full"}
	}
	return err
}

// isBrokenPipe reports whether an error is a closed pipe of an output, and nothing else.
func isBrokenPipe(err error) bool {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(several.Unwrap(), func(err error) bool { return !isBrokenPipe(err) })
	}
	if inner := errors.Unwrap(err); inner != nil {
		return isBrokenPipe(inner)
	}
	return err == syscall.EPIPE
}
