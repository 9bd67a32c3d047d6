//go:build linux

package guest

import "golang.org/x/sys/unix"

// begin prepares a machine for a test.
func begin() {
	// Charge single pages and batches, not huge pages, in this process and all that it
	// starts.
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		panic(err)
	}
}
