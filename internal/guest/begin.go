//go:build linux

package guest

import "golang.org/x/sys/unix"

// begin prepares a machine for a test.
func begin() {
	// A charge is of one page or a batch, not of a huge page: here, and in all
	// processes started from here.
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		panic(err)
	}
}
