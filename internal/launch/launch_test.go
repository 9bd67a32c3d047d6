//go:build linux

package launch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tracerVariable makes the test binary act as a chargetrace that never calls Begin.
const tracerVariable = "LAUNCH_TEST_TRACER"

func TestMain(m *testing.M) {
	PlayRole()
	if path, ok := os.LookupEnv(tracerVariable); ok {
		c, err := Start(Options{Argv: []string{"touch", path}})
		if err != nil {
			panic(err)
		}
		fmt.Println(c.PID())
		io.Copy(io.Discard, os.Stdin)
		os.Exit(1) // its parent does not close stdin
	}
	os.Exit(m.Run())
}

// start starts a shell script.
func start(t *testing.T, stdout io.Writer, script string, args ...string) *Command {
	t.Helper()
	c, err := Start(Options{Argv: append([]string{"sh", "-c", script, "sh"}, args...), Stdout: stdout})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs a command to its end.
func run(t *testing.T, c *Command) (Exit, error) {
	t.Helper()
	if err := c.Begin(); err != nil {
		t.Fatal(err)
	}
	return c.Wait()
}

func TestExit(t *testing.T) {
	for script, want := range map[string]Exit{
		"exit 0":        {},
		"exit 3":        {Status: 3},
		"kill -KILL $$": {Status: 137, Signaled: true},
	} {
		if exit, err := run(t, start(t, nil, script)); exit != want || err != nil {
			t.Errorf("%s: %+v, %v, want %+v", script, exit, err, want)
		}
	}
}

// TestCannotRun runs commands that Start cannot find, and some that fail in execve(2).
func TestCannotRun(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"plain": 0o644, "garbage": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("\x00garbage"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte("#!/nowhere/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, tc := range []struct {
		name   string
		status int
		begins bool
		want   string
	}{
		{"missing\n", 127, false, `cannot run missing\n: executable file not found in $PATH`},
		{"./missing", 127, false, "cannot run ./missing: no such file or directory"},
		{"./plain", 126, false, "cannot run ./plain: permission denied"},
		{"./garbage", 126, true, "cannot run ./garbage: exec format error"},
		{"./script", 127, true, "cannot run ./script: no such file or directory"},
	} {
		c, err := Start(Options{Argv: []string{tc.name}})
		if (err == nil) != tc.begins {
			t.Errorf("%s: Start: %v", tc.name, err)
		}
		status := Status(err)
		if err == nil {
			var exit Exit
			exit, err = run(t, c)
			status = exit.Status
		}
		var e *Error
		if !errors.As(err, &e) || e.Message != tc.want || e.Hint == "" || status != tc.status {
			t.Errorf("%s: %+v, status %d", tc.name, e, status)
		}
	}
}

// TestInherits checks that the command gets its arguments, and neither the socket nor the role.
func TestInherits(t *testing.T) {
	var out bytes.Buffer
	c := start(t, &out, `printf '[%s]' "$@" "$CHARGETRACE_ROLE"; readlink /proc/$$/fd/*`, "a b", "--", "-n")
	if _, err := run(t, c); err != nil {
		t.Error(err)
	}
	if got := out.String(); !strings.HasPrefix(got, "[a b][--][-n][]") || strings.Contains(got, "socket:") {
		t.Errorf("%s", got)
	}
}

// TestNotBegun calls Wait without Begin.
func TestNotBegun(t *testing.T) {
	var out bytes.Buffer
	exit, err := start(t, &out, "echo begun").Wait()
	if exit != (Exit{}) || err != nil || out.Len() > 0 {
		t.Errorf("%+v, %v, %s", exit, err, &out)
	}
}

// TestKilledBeforeExec kills the waiting process before Begin, and after Begin but before it reads
// the byte.
func TestKilledBeforeExec(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGKILL, unix.SIGSTOP} {
		var out bytes.Buffer
		c := start(t, &out, "echo begun")
		if err := unix.Kill(c.PID(), s); err != nil {
			t.Fatal(err)
		}
		if err := c.Begin(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(c.PID(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		exit, err := c.Wait()
		if exit != (Exit{Status: 137, Signaled: true}) || err != nil || out.Len() > 0 {
			t.Errorf("%v: %+v, %v, %s", s, exit, err, &out)
		}
	}
}

// TestTracerDies kills chargetrace before the command begins.
func TestTracerDies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "begun")
	tracer := exec.Command(os.Args[0])
	tracer.Env = append(os.Environ(), tracerVariable+"="+path)
	stdin, err := tracer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := tracer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(stdout, &pid); err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	tracer.Process.Kill()
	tracer.Wait()
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for err = unix.EINTR; err == unix.EINTR; {
		_, err = unix.Poll(fds, -1)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the command began: %v", err)
	}
}

// TestSignals signals this process: it forwards SIGTERM, but not SIGINT and SIGQUIT.
func TestSignals(t *testing.T) {
	ready, out := io.Pipe()
	c := start(t, out, "echo ready; exec sleep infinity")
	if err := c.Begin(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(ready, new(string)); err != nil {
		t.Fatal(err)
	}
	for _, s := range []unix.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGTERM} {
		if err := unix.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
	}
	if exit, err := c.Wait(); exit != (Exit{Status: 128 + int(unix.SIGTERM), Signaled: true}) || err != nil {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestUnknownUser(t *testing.T) {
	want := "there is no user nobody-here"
	if os.Geteuid() != 0 {
		want = "only root can run a command as another user"
	}
	_, err := Start(Options{Argv: []string{"true"}, User: "nobody-here"})
	var e *Error
	if !errors.As(err, &e) || e.Message != want || e.Hint == "" || Status(err) != 0 {
		t.Errorf("%v", err)
	}
}
