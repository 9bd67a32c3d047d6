//go:build linux

// Package launch runs the command of "chargetrace ... -- command". It separates fork and exec, so
// that a trace can start in between and see the command's first charge. It also runs the command in
// a cgroup with limits, and removes the cgroup, however chargetrace ends.
//
// Package launch must not depend on a tracer. Its caller traces the process with [Command.PID].
//
// # Processes
//
// chargetrace executes itself for this. A child's role is in the environment variable
// CHARGETRACE_ROLE, as JSON. main first calls [PlayRole], which plays it. There are three roles:
//
//   - execAs assumes the identity of a user, waits, and execs the command. It has the command's
//     pid, arguments, files and terminal from the start.
//   - cgroupReaper makes the command's cgroup, and outlives chargetrace to remove it. It has its
//     own session and ignores signals. It is started only for limits.
//   - limitRestorer raises memory limits for [Grace], and outlives chargetrace to put them back. It
//     is not started for a command.
//
// Each child holds one end of a socket pair, chargetrace the other. If chargetrace dies, even by
// SIGKILL, the kernel closes its end, and the child reads EOF.
//
//	chargetrace                        execAs                          cgroupReaper
//	-----------                        ------                          ------------
//	Start   exec self ---------------> setuid(2)
//	                                   look up the command
//	            <-------- {} --------- write
//	                                   wait
//	        exec self ------------------------------------------------> setsid(2)
//	                                                                    mkdir(2), write the limits
//	            <-------------------------------------------- {Dir} --- write
//	                                                                    wait
//	        (the caller starts to trace the pid)
//
//	Begin   move the pid to Dir
//	        write --- one byte ------> execve(2)
//	                                   the command runs
//	Wait        <-------- EOF -------- closed by execve(2)
//	        wait4(2) <---------------- exit
//	        shutdown(2) --- EOF ----------------------------------------> kill processes left in Dir
//	                                                                    rmdir(2)
//	            <----------------------------------------- {Killed} --- write
//
// On a system with systemd, chargetrace starts the cgroupReaper through systemd-run(1), in a new
// scope for the cgroup.
//
// # Failures
//
// A child that fails writes {Error} instead of its next message, and exits. An execve(2) that
// fails is such an error too, so [Command.Wait] returns it.
//
// If chargetrace dies before Begin, execAs exits without an exec. If it dies later, the command
// continues, unless it has a cgroup: the cgroupReaper kills all processes in it and removes it.
//
// # Signals
//
// From Start to Wait, chargetrace handles SIGINT, SIGQUIT, SIGTERM and SIGHUP for the command.
// Ctrl-C and Ctrl-\ reach both through the terminal: chargetrace drops its own SIGINT or SIGQUIT
// and waits for the command. It forwards the first SIGTERM or SIGHUP, and kills the command 5
// seconds later or at the next SIGTERM. Signals ignored before, as by nohup(1), stay ignored in
// both.
package launch

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"chargetrace/internal/cgroup"
)

// Options configure a command.
type Options struct {
	// Argv is the command and its arguments.
	Argv []string
	// User is the name or number of the user to run it as. The default is the caller of sudo(8),
	// or else the user of chargetrace.
	User string
	// Limits are the limits of the command's cgroup. Without limits it stays in chargetrace's.
	Limits cgroup.Limits
	// Stdin, Stdout and Stderr are the command's, as in [exec.Cmd].
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Command is a started command. Until Begin it is the process that waits to exec it.
type Command struct {
	cmd    *exec.Cmd
	socket *os.File   // to execAs, closed by its exec
	cgroup *ownCgroup // nil without limits
	begun  bool
	waited chan struct{} // closed by Wait
}

// Exit describes the end of a command.
type Exit struct {
	// Status is the command's exit status, 128+N if signal N killed it, or 126 or 127 if it could
	// not be run. It is 0 if the command has not begun.
	Status int
	// Signaled reports whether a signal killed it.
	Signaled bool
	// LeftBehind is the number of processes killed in its cgroup after its end.
	LeftBehind int
}

// Error is an error with a hint. A child sends it as JSON.
type Error struct {
	Message string
	// Hint may be empty.
	Hint string
	// Status is the exit status of env(1) for a command that cannot be run, 126 or 127, or 0 for
	// any other error.
	Status int
}

func (e *Error) Error() string { return e.Message }

// Status returns the Status of the [Error] that err wraps, or 0.
func Status(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

// Start starts the process that waits to exec the command, and makes its cgroup. It fails if there
// is no such command.
func Start(o Options) (*Command, error) {
	as, err := findIdentity(o.User)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, o.Argv...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = o.Stdin, o.Stdout, o.Stderr
	// If Stdout is a pipe of exec.Cmd, the command's children may hold it open.
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), as.environ()...)

	signals := make(chan os.Signal, 4)
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	c := &Command{cmd: cmd, waited: make(chan struct{})}
	c.socket, err = startRole(cmd, role{ExecAs: as})
	if err != nil {
		signal.Stop(signals)
		return nil, err
	}
	go c.relay(signals)
	if err := c.prepare(o.Limits); err != nil {
		_, waitErr := c.Wait()
		return nil, errors.Join(err, waitErr)
	}
	return c, nil
}

// relay forwards signals to the command.
func (c *Command) relay(signals chan os.Signal) {
	defer signal.Stop(signals)
	var overdue <-chan time.Time
	for {
		select {
		case s := <-signals:
			switch {
			case s == unix.SIGINT || s == unix.SIGQUIT:
				// The terminal has sent it to the command too.
			case overdue == nil:
				c.cmd.Process.Signal(s)
				overdue = time.After(5 * time.Second)
			case s == unix.SIGHUP:
				// The kernel and the shell both send one when the terminal hangs up.
			default:
				c.cmd.Process.Kill()
			}
		case <-overdue:
			c.cmd.Process.Kill()
		case <-c.waited:
			return
		}
	}
}

// prepare waits until execAs has found the command, and makes the cgroup.
func (c *Command) prepare(limits cgroup.Limits) error {
	err := c.awaitChild()
	if err == nil && limits != (cgroup.Limits{}) {
		c.cgroup, err = newOwnCgroup(limits)
	}
	return err
}

// awaitChild waits for the next message of execAs and returns the error in it. It returns nil at
// EOF: after the exec, or if a signal has killed the child, which Wait reports. A child killed
// before it reads the byte of Begin gives ECONNRESET instead (net/unix/af_unix.c, unix_release_sock).
func (c *Command) awaitChild() error {
	_, err := receive(c.socket)
	if err == io.EOF || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// PID returns the pid of the command. It is the same before the exec.
func (c *Command) PID() int { return c.cmd.Process.Pid }

// Begin moves the process to its cgroup and lets it exec the command.
func (c *Command) Begin() error {
	if c.cgroup != nil {
		// ESRCH and EPIPE: a signal has killed it, which Wait reports.
		if err := c.cgroup.Add(c.PID()); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	c.begun = true
	if _, err := c.socket.Write([]byte{0}); err != nil && !errors.Is(err, unix.EPIPE) {
		return err
	}
	return nil
}

// Wait waits for the end of the command and removes its cgroup. Without Begin, the process ends
// without an exec.
func (c *Command) Wait() (exit Exit, err error) {
	var execErr, reapErr error
	if c.begun {
		execErr = c.awaitChild()
	}
	c.socket.Close()
	waitErr := c.cmd.Wait()
	close(c.waited)
	if errors.As(waitErr, new(*exec.ExitError)) || errors.Is(waitErr, exec.ErrWaitDelay) {
		waitErr = nil
	}
	switch ws := c.cmd.ProcessState.Sys().(syscall.WaitStatus); {
	case !c.begun:
	case ws.Signaled():
		exit.Status, exit.Signaled = 128+int(ws.Signal()), true
	case Status(execErr) != 0:
		exit.Status = Status(execErr)
	default:
		exit.Status = ws.ExitStatus()
	}
	if c.cgroup != nil {
		exit.LeftBehind, reapErr = c.cgroup.remove()
	}
	return exit, errors.Join(execErr, waitErr, reapErr)
}
