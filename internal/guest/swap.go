//go:build linux

package guest

import (
	"os/exec"
	"testing"
)

// swapOn enables swap on the machine's disk; see [Machine.WithDisk].
func swapOn(t testing.TB) {
	t.Helper()
	out, err := exec.Command(busybox, "sh", "-c", "mkswap /dev/nvme0n1 && swapon /dev/nvme0n1").CombinedOutput()
	if err != nil {
		t.Fatalf("swap: %v: %s", err, out)
	}
}
