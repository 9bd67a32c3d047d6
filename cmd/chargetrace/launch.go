package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// runCommand traces a command from its start to its end, and returns its exit
// status.
func runCommand(cfg *config, args []string, stdin io.Reader, stdout, stderr io.Writer) (status int, err error) {
	c, err := launch(cfg, stdin, stdout, stderr)
	if err != nil {
		return 1, err
	}
	err = c.prepare(cfg.child.limits)
	if err == nil {
		err = live(cfg, args, c, stdout, stderr)
	}
	return c.end(stderr, err)
}

// launched is a command that chargetrace runs, or the process that is held to
// become it.
type launched struct {
	name   string
	cmd    *exec.Cmd
	socket *os.File // to the process, until it has become the command
	group  *group   // nil: none of its own
	status int      // what to exit with where it cannot be run
	begun  bool
	ended  chan struct{}
	oom    oomWatch
	// output is where the command's output goes while there is a screen.
	output lateWriter
}

// launch starts the process that becomes the command when it is told to.
func launch(cfg *config, stdin io.Reader, stdout, stderr io.Writer) (*launched, error) {
	as, err := findIdentity(cfg.child.user)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// A signal that is ignored, as under nohup(1), stays so for the command too.
	signals := make(chan os.Signal, 4)
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	c := &launched{name: event.Printable(cfg.child.argv[0]), cmd: exec.Command(self, cfg.child.argv...), ended: make(chan struct{})}
	c.cmd.Args[0] = os.Args[0]
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = stdin, stdout, stderr
	if cfg.hasScreen(stdout) {
		c.takeTerminal()
	}
	c.cmd.Env = append(os.Environ(), as.environ()...)
	c.socket, err = startSelf(c.cmd, role{ExecAs: as})
	if err != nil {
		signal.Stop(signals)
		return nil, err
	}
	c.oom.pid = uint32(c.cmd.Process.Pid)
	go c.relay(signals)
	return c, nil
}

// takeTerminal leaves the terminal to the screen of -watch.
func (c *launched) takeTerminal() {
	c.output.set(io.Discard)
	// What the command leaves behind may keep its output open.
	c.cmd.WaitDelay = time.Second
	if isTerminal(c.cmd.Stdin) {
		c.cmd.Stdin = nil
	}
	c.cmd.Stdout = &c.output
	if isTerminal(c.cmd.Stderr) {
		c.cmd.Stderr = &c.output
	}
}

// relay passes signals on to the command.
func (c *launched) relay(signals chan os.Signal) {
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
				// A terminal that hangs up, and its shell, may both say so.
			default:
				c.cmd.Process.Kill()
			}
		case <-overdue:
			c.cmd.Process.Kill()
		case <-c.ended:
			return
		}
	}
}

// prepare waits until the process has found the command, and makes its group.
func (c *launched) prepare(limits cgroup.Limits) error {
	r, err := readAnswer(c.socket)
	if err == nil {
		c.status, err = r.Status, r.error()
	}
	if err == io.EOF {
		// A signal has ended it already, as its exit status will tell.
		err = nil
	}
	if err == nil && limits != (cgroup.Limits{}) {
		c.group, err = newGroup(limits)
	}
	return err
}

// begin lets the process become the command.
func (c *launched) begin() error {
	if c.group != nil {
		if err := c.group.Add(c.cmd.Process.Pid); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	c.begun = true
	if _, err := c.socket.Write([]byte{0}); err != nil && !errors.Is(err, unix.EPIPE) {
		return err
	}
	return nil
}

// end waits until the command has ended, where it was begun, and removes its
// group. It returns the exit status, and err with what went wrong besides.
func (c *launched) end(stderr io.Writer, err error) (status int, _ error) {
	errs := []error{err}
	if c.begun {
		// It says something only if it could not become the command.
		r, err := readAnswer(c.socket)
		if err != io.EOF {
			errs = append(errs, err)
		}
		c.status = r.Status
		errs = append(errs, r.error())
	}
	c.socket.Close()
	err = c.cmd.Wait()
	close(c.ended)
	if !errors.As(err, new(*exec.ExitError)) && !errors.Is(err, exec.ErrWaitDelay) {
		errs = append(errs, err)
	}
	status = c.status
	if ws := c.cmd.ProcessState.Sys().(syscall.WaitStatus); c.begun && ws.Signaled() {
		status = 128 + int(ws.Signal())
		c.oom.print(stderr)
	} else if c.begun && status == 0 {
		status = ws.ExitStatus()
	}
	if c.group != nil {
		killed, err := c.group.remove()
		errs = append(errs, err)
		if killed > 0 {
			fmt.Fprintf(stderr, "chargetrace: processes left by %s and killed: %d\n", c.name, killed)
		}
	}
	return status, errors.Join(errs...)
}

// oomWatch is a sink that notes whether the OOM killer kills a process.
type oomWatch struct {
	pid   uint32
	kill  *event.Event // nil: not yet
	names cgroup.Names
}

func (w *oomWatch) Write(batch []event.Event) error {
	for i := range batch {
		switch e := &batch[i]; {
		case e.Type == event.CgroupName:
			w.names.Add(e)
		case e.Type == event.OOMKill && e.Victim.PID == w.pid:
			kill := *e
			w.kill = &kill
		}
	}
	return nil
}

func (w *oomWatch) Close(stream.Counts) error { return nil }

func (w *oomWatch) print(stderr io.Writer) {
	if w.kill == nil {
		return
	}
	fmt.Fprintf(stderr, "chargetrace: %s was killed by the OOM killer: %s ran out of memory\n",
		w.kill.Victim.Comm.Of(w.pid), w.names.RanOut(w.kill))
}

// execAs makes this process the command, under the identity of as, once
// chargetrace says so on the socket.
func execAs(as *identity, socket *os.File, argv []string) answer {
	if err := as.assume(); err != nil {
		return answer{Err: err.Error()}
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return cannotRun(argv[0], err)
	}
	if err := writeAnswer(socket, answer{}); err != nil {
		return answer{}
	}
	// It has ended, or given up, if it says nothing.
	if n, _ := socket.Read(make([]byte, 1)); n == 0 {
		return answer{}
	}
	return cannotRun(argv[0], syscall.Exec(path, argv, os.Environ()))
}

// cannotRun explains why a command cannot be run, with the exit status that
// env(1) has then.
func cannotRun(name string, err error) answer {
	r := answer{Status: 126}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		r.Status = 127
	}
	var inPath *exec.Error
	if errors.As(err, &inPath) {
		err = inPath.Err
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	r.Err = fmt.Sprintf("cannot run %s: %v", event.Printable(name), err)
	switch {
	case errors.Is(err, exec.ErrDot):
		r.Hint = "with ./ before it, it is the one in this directory"
	case errors.Is(err, exec.ErrNotFound):
		r.Hint = "sudo has a PATH of its own; a path with a slash does without"
	case errors.Is(err, fs.ErrNotExist) && inPath != nil:
		r.Hint = "the path starts from the directory that chargetrace is run in"
	case errors.Is(err, fs.ErrNotExist):
		r.Hint = "it is there, but the interpreter in its first line is not"
	case errors.Is(err, fs.ErrPermission):
		r.Hint = "chmod +x makes it executable; the user it runs as must get there too"
	case errors.Is(err, unix.ENOEXEC):
		r.Hint = "it is for another processor, or a script without a first line such as #!/bin/sh"
	}
	return r
}
