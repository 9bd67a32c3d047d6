//go:build unix

package recorder

import (
	"os"

	"golang.org/x/sys/unix"
)

// tryLock locks a file that is being written, until it is closed. It returns false if another
// process does that.
func tryLock(f *os.File) bool { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil }
