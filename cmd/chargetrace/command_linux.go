package main

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
	"chargetrace/internal/launch"
)

// runCommand traces a command from its exec to its end, and returns its exit status.
func runCommand(cfg *config, args []string, stdin io.Reader, stdout, stderr io.Writer) (status int, err error) {
	c := &child{name: event.Printable(cfg.child.argv[0])}
	options := launch.Options{
		Argv: cfg.child.argv, User: cfg.child.user, Limits: cfg.child.limits,
		Stdin: stdin, Stdout: stdout, Stderr: stderr,
	}
	if cfg.hasScreen(stdout) {
		c.leaveTerminal(&options)
	}
	command, err := launch.Start(options)
	if err != nil {
		return launch.Status(err), hinted(err)
	}
	c.pid, c.begin = uint32(command.PID()), command.Begin
	c.interrupt = func() { unix.Kill(0, unix.SIGINT) }
	err = live(cfg, args, c, stdout, stderr)
	exit, waitErr := command.Wait()
	if exit.Signaled && c.oomKill != "" {
		fmt.Fprintf(stderr, "chargetrace: %s\n", c.oomKill)
	}
	if exit.LeftBehind > 0 {
		fmt.Fprintf(stderr, "chargetrace: processes left by %s and killed: %d\n", c.name, exit.LeftBehind)
	}
	return exit.Status, errors.Join(err, hinted(waitErr))
}

// leaveTerminal keeps the command off the terminal, which is the screen's.
func (c *child) leaveTerminal(o *launch.Options) {
	c.output.set(io.Discard)
	o.Stdout = &c.output
	if isTerminal(o.Stdin) {
		o.Stdin = nil
	}
	if isTerminal(o.Stderr) {
		o.Stderr = &c.output
	}
}

// hinted adds the hint of a launch error.
func hinted(err error) error {
	var e *launch.Error
	if !errors.As(err, &e) || e.Hint == "" {
		return err
	}
	return &hintedError{err, e.Hint}
}

func playRole() { launch.PlayRole() }
