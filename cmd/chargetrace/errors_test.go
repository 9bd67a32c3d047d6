package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"
)

func TestPrintError(t *testing.T) {
	full := func(path string) error { return &fs.PathError{Op: "write", Path: path, Err: syscall.ENOSPC} }
	for _, tc := range []struct {
		err  error
		want string
	}{
		{errors.New("a"), "chargetrace: a\n"},
		{errors.Join(full("x"), full("x")), "chargetrace: write x: no space left on device\n"},
		{
			errors.Join(errors.Join(full("x"), full("y")), &hintedError{errors.Join(full("x"), full("y")), "first"}, &hintedError{errors.New("z"), "second"}),
			"chargetrace: write x: no space left on device\nwrite y: no space left on device\nz\nhint: first\n",
		},
		// A message stays as it is, whatever lines it has.
		{fmt.Errorf("%w; %w", errors.New("a\na"), errors.New("a")), "chargetrace: a\na; a\n"},
		{errors.Join(errors.New("a\na\nb"), errors.New("b")), "chargetrace: a\na\nb\nb\n"},
		{fmt.Errorf("open: %w", errors.Join(errors.New("a"), errors.New("a"))), "chargetrace: open: a\na\n"},
	} {
		var stderr strings.Builder
		printError(&stderr, tc.err)
		if stderr.String() != tc.want {
			t.Errorf("%q, want %q", stderr.String(), tc.want)
		}
	}
}
