package main

import (
	"errors"
	"fmt"
	"io"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/launch"
	"chargetrace/internal/stream"
)

// runCommand traces a command from its exec to its end, and returns its exit status.
func runCommand(cfg *config, args []string, stdin io.Reader, stdout, stderr io.Writer) (status int, err error) {
	c := &launched{name: event.Printable(cfg.child.argv[0])}
	options := launch.Options{
		Argv: cfg.child.argv, User: cfg.child.user, Limits: cfg.child.limits,
		Stdin: stdin, Stdout: stdout, Stderr: stderr,
	}
	if cfg.hasScreen(stdout) {
		c.leaveTerminal(&options)
	}
	c.Command, err = launch.Start(options)
	if err != nil {
		return launch.Status(err), err
	}
	c.oom.pid = uint32(c.PID())
	err = live(cfg, args, c, stdout, stderr)
	exit, waitErr := c.Wait()
	if exit.Signaled {
		c.oom.print(stderr)
	}
	if exit.LeftBehind > 0 {
		fmt.Fprintf(stderr, "chargetrace: processes left by %s and killed: %d\n", c.name, exit.LeftBehind)
	}
	return exit.Status, errors.Join(err, waitErr)
}

// launched is the command and what live needs for it.
type launched struct {
	*launch.Command
	name   string // printable
	oom    oomWatch
	output lateWriter // the command's stdout and stderr while the screen of -watch is on
}

// leaveTerminal keeps the command off the terminal, which is the screen's.
func (c *launched) leaveTerminal(o *launch.Options) {
	c.output.set(io.Discard)
	o.Stdout = &c.output
	if isTerminal(o.Stdin) {
		o.Stdin = nil
	}
	if isTerminal(o.Stderr) {
		o.Stderr = &c.output
	}
}

// oomWatch is a sink that keeps the OOM kill of a process.
type oomWatch struct {
	pid   uint32
	kill  *event.Event // nil: none yet
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
