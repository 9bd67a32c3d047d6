//go:build linux

package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tmux is a terminal that runs a command.
type tmux struct {
	socket string
	output string // the file that gets all output of the terminal
}

// prepareTerminals enables terminals in a machine: it mounts devpts, and makes /bin/sh,
// with which tmux(1) runs commands.
func prepareTerminals(t testing.TB) {
	t.Helper()
	for _, dir := range []string{"/dev/pts", "/bin"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(busybox, "/bin/sh"); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", 0, "ptmxmode=666"); err != nil {
		t.Fatal(err)
	}
}

// startTmux runs a command in a terminal of a size. When the command has ended, the
// terminal shows its exit status. Call prepareTerminals first.
func startTmux(t testing.TB, width, height int, argv ...string) *tmux {
	t.Helper()
	dir := t.TempDir()
	x := &tmux{filepath.Join(dir, "socket"), filepath.Join(dir, "output")}
	if err := os.WriteFile(x.output, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	line := "read line; stty -g; " + strings.Join(argv, " ") + "; echo exit status $?; stty -g; read line"
	x.run(t, "new-session", "-d", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height), fmt.Sprintf("%s sh -c '%s'", busybox, line))
	t.Cleanup(func() { exec.Command("/usr/bin/tmux", "-S", x.socket, "kill-server").Run() })
	// cat(1) would copy within the kernel, which inotify(7) does not report.
	x.run(t, "pipe-pane", busybox+" dd bs=64k of="+x.output)
	x.press(t, "Enter")
	return x
}

// run runs a command of tmux(1) and returns its output.
func (x *tmux) run(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("/usr/bin/tmux", append([]string{"-u", "-f", "/dev/null", "-S", x.socket}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SHELL=/bin/sh")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tmux %s: %v\n%s", args, err, out)
	}
	return string(out)
}

// press presses a key.
func (x *tmux) press(t testing.TB, key string) {
	t.Helper()
	x.run(t, "send-keys", key)
}

// screen returns the contents of the terminal.
func (x *tmux) screen(t testing.TB) string {
	t.Helper()
	return x.run(t, "capture-pane", "-p")
}

// until waits until the terminal's contents match a pattern.
func (x *tmux) until(t testing.TB, pattern string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	waitForWrite(t, x.output, func() bool { return re.MatchString(x.screen(t)) })
}

// ended waits until the command has ended with a status. It returns the terminal's contents
// and scrollback. The terminal's settings must be the same as before.
func (x *tmux) ended(t testing.TB, status int) string {
	t.Helper()
	x.until(t, fmt.Sprintf(`exit status %d\n\S+:\S+\n`, status))
	all := x.run(t, "capture-pane", "-p", "-S", "-200", "-J")
	settings := regexp.MustCompile(`(?m)^[0-9a-f]+(:[0-9a-f]+){20,}$`).FindAllString(all, -1)
	if len(settings) != 2 || settings[0] != settings[1] {
		t.Errorf("the terminal's settings are %q:\n%s", settings, all)
	}
	return all
}
