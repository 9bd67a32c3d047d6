//go:build linux

package guest

import (
	"os/exec"
	"testing"
)

// loopbackUp enables the loopback interface, for sockets of 127.0.0.1.
func loopbackUp(t testing.TB) {
	t.Helper()
	if out, err := exec.Command(busybox, "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("lo: %v: %s", err, out)
	}
}
