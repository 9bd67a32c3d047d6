//go:build linux

package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
)

// execAs assumes an identity, looks up the command, and execs it after Begin. It returns only if it
// does not exec: nil if chargetrace has died or given up.
func execAs(as *identity, socket *os.File, argv []string) *Error {
	if err := as.assume(); err != nil {
		return &Error{Message: err.Error()}
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return cannotRun(argv[0], err)
	}
	if err := send(socket, message{}); err != nil {
		return nil
	}
	if n, _ := socket.Read(make([]byte, 1)); n == 0 {
		return nil
	}
	return cannotRun(argv[0], syscall.Exec(path, argv, os.Environ()))
}

// cannotRun explains an error of LookPath or execve(2).
func cannotRun(name string, err error) *Error {
	e := &Error{Status: 126}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		e.Status = 127
	}
	var lookup *exec.Error // from LookPath
	if errors.As(err, &lookup) {
		err = lookup.Err
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	e.Message = fmt.Sprintf("cannot run %s: %v", event.Printable(name), err)
	switch {
	case errors.Is(err, exec.ErrDot):
		e.Hint = "put ./ before it to run the one in this directory"
	case errors.Is(err, exec.ErrNotFound):
		e.Hint = "sudo sets its own PATH; a path with a slash does not need it"
	case errors.Is(err, fs.ErrNotExist) && lookup != nil:
		e.Hint = "the path starts from the directory that chargetrace is run in"
	case errors.Is(err, fs.ErrNotExist):
		e.Hint = "the file exists, but not the interpreter in its first line"
	case errors.Is(err, fs.ErrPermission):
		e.Hint = "chmod +x makes it executable; the user it runs as needs access to its directories"
	case errors.Is(err, unix.ENOEXEC):
		e.Hint = "it is built for another processor, or a script without a first line such as #!/bin/sh"
	}
	return e
}
