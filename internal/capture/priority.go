//go:build linux

package capture

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Prioritize raises the priority of the calling goroutine's thread above the traced ones
// until the returned function is called. It does nothing without the permission. A reader
// that waits for a CPU behind two processes that charge as fast as they can loses events:
// the buffer is full in 50 ms.
func Prioritize() (restore func()) {
	const nice = -20
	runtime.LockOSThread()
	before, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil || unix.Setpriority(unix.PRIO_PROCESS, 0, nice) != nil {
		return runtime.UnlockOSThread
	}
	return func() {
		unix.Setpriority(unix.PRIO_PROCESS, 0, 20-before) // the system call returns 20 - nice
		runtime.UnlockOSThread()
	}
}
