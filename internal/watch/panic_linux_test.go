package watch

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// TestPanic holds that a panic restores the terminal.
func TestPanic(t *testing.T) {
	host, guest, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	defer guest.Close()
	if err := pty.Setsize(host, &pty.Winsize{Rows: 24, Cols: 80}); err != nil {
		t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(guest.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	w := New(guest, newVerdict(info), Options{Keys: guest})
	var shown bytes.Buffer
	readUntil(t, host, &shown, "nothing is charged yet")
	during, err := unix.IoctlGetTermios(int(guest.Fd()), unix.TCGETS)
	if err != nil || during.Lflag&unix.ICANON != 0 {
		t.Errorf("the terminal is not raw: %v", err)
	}
	func() {
		defer func() {
			if r := recover(); r != "oops" {
				t.Errorf("it panics with %v", r)
			}
		}()
		defer w.LeaveOnPanic()
		panic("oops")
	}()
	after, err := unix.IoctlGetTermios(int(guest.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("%v, the terminal was %+v and is %+v", err, before, after)
	}
	readUntil(t, host, &shown, ansi.ResetModeAltScreenSaveCursor)
}

// readUntil reads from a terminal until a text appears.
func readUntil(t *testing.T, host *os.File, shown *bytes.Buffer, what string) {
	t.Helper()
	if err := host.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(shown.String(), what) {
		var buf [4096]byte
		n, err := host.Read(buf[:])
		shown.Write(buf[:n])
		if err != nil {
			t.Fatalf("no %q: %v: %q", what, err, shown)
		}
	}
}
