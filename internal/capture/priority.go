//go:build linux

package capture

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Prioritize has the scheduler prefer the calling goroutine's thread to those it
// traces, as far as this user may ask for that, until the returned function is
// called. A reader that waits for its turn behind two processes that charge as fast
// as they can loses events: the buffer is full in 50 ms.
func Prioritize() (restore func()) {
	const nice = -20
	runtime.LockOSThread()
	before, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil || unix.Setpriority(unix.PRIO_PROCESS, 0, nice) != nil {
		return runtime.UnlockOSThread
	}
	return func() {
		unix.Setpriority(unix.PRIO_PROCESS, 0, 20-before) // as the system call returns it
		runtime.UnlockOSThread()
	}
}
