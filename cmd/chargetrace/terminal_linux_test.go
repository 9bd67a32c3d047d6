package main

import (
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/charmbracelet/x/ansi"
	"golang.org/x/sys/unix"
)

// playOnScreen plays a recording with -watch on a terminal. It returns the command, both
// ends of the terminal, and the terminal's initial settings.
func playOnScreen(t *testing.T, env ...string) (cmd *exec.Cmd, host *console, terminal *os.File, before unix.Termios) {
	t.Helper()
	// testscript.Main has installed it.
	program, err := exec.LookPath("chargetrace")
	if err != nil {
		t.Fatal(err)
	}
	host, terminal = openTerminal(t, 80, 24)
	cmd = exec.Command(program, "-r", "testdata/6.1-amd64.ctrace", "-watch")
	cmd.Env = append(append(os.Environ(), "TERM=xterm-256color", "LC_ALL=C.UTF-8"), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	before = termios(t, terminal)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, host, terminal, before
}

func termios(t *testing.T, terminal *os.File) unix.Termios {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *state
}

// TestTerminal checks that the screen handles keys and new sizes, restores the terminal,
// and leaves the last screen and the summary on it.
func TestTerminal(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(t *testing.T, cmd *exec.Cmd, host *console)
	}{
		{"q", func(t *testing.T, _ *exec.Cmd, host *console) { host.press(t, "q") }},
		{"Ctrl-C", func(t *testing.T, _ *exec.Cmd, host *console) { host.press(t, "\x03") }},
		{"SIGTERM", func(t *testing.T, cmd *exec.Cmd, _ *console) {
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cmd, host, terminal, before := playOnScreen(t)
			host.waitFor(t, "OOM in ")
			if state := termios(t, terminal); state.Lflag&unix.ICANON != 0 {
				t.Error("the terminal is in canonical mode")
			}
			host.press(t, "u")
			host.waitFor(t, " 2560")
			host.resize(t, 120, 30)
			host.waitFor(t, "USAGE")
			host.waitFor(t, "memory limit of 2560 pages hit")
			tc.end(t, cmd, host)
			host.waitFor(t, ansi.ResetModeAltScreenSaveCursor)
			host.waitFor(t, "memory limit of 2560 pages hit") // the last screen
			host.waitFor(t, "chargetrace: read ")             // the summary
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			if after := termios(t, terminal); after != before {
				t.Errorf("the terminal's settings were %+v, and are %+v", before, after)
			}
		})
	}
}

var color = regexp.MustCompile("\x1b\\[[0-9;]*[34][0-9]m")

// TestColor checks that the screen has colors, but none with NO_COLOR.
func TestColor(t *testing.T) {
	for _, noColor := range []string{"", "1"} {
		t.Run("NO_COLOR="+noColor, func(t *testing.T) {
			t.Parallel()
			_, host, _, _ := playOnScreen(t, "NO_COLOR="+noColor)
			if got := color.MatchString(host.waitFor(t, "OOM in ")); got != (noColor == "") {
				t.Errorf("colors: %v", got)
			}
		})
	}
}

// TestNoUTF8 checks that the screen uses only ASCII in a locale without UTF-8.
func TestNoUTF8(t *testing.T) {
	_, host, _, _ := playOnScreen(t, "LC_ALL=C")
	if shown := host.waitFor(t, "OOM in "); strings.IndexFunc(shown, func(r rune) bool { return r > 0x7f }) >= 0 {
		t.Errorf("%q", shown)
	}
}

func (c *console) press(t testing.TB, keys string) {
	t.Helper()
	if _, err := io.WriteString(c, keys); err != nil {
		t.Fatal(err)
	}
}
