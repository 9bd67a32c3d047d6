package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"
	"time"

	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
	"chargetrace/internal/watch"
)

// source is where the events of a session come from: a trace of the running kernel, or
// recordings.
type source interface {
	stream.Source
	// filter says which events are shown, and what of that the source has not applied
	// itself.
	filter() (selected, left stream.Filter)
	// completeScreen gives the screen a clock and the cgroups' files, if the source has.
	completeScreen(*watch.Options) error
	// warn prints what is missing from the events.
	warn(stderr io.Writer)
	// begin is called once the outputs are ready for events. The source calls end when
	// all that it traces is gone, until ctx is done.
	begin(ctx context.Context, stderr io.Writer, end func()) error
	// printCounts prints what became of the charges.
	printCounts(stderr io.Writer, c stream.Counts) error
}

// session is one run of the command: it copies the events of a source to the outputs.
type session struct {
	cfg   *config
	src   source
	child *child // nil: no command is run
}

// child is the command that is traced.
type child struct {
	name string // printable
	pid  uint32
	// begin lets it begin.
	begin func() error
	// interrupt does to chargetrace and the command what Ctrl-C on their terminal does.
	interrupt func()
	oom       oomWatch
	output    lateWriter // where it writes while there is a screen
}

// run copies until the source ends or ctx is done. giveSignalsBack restores the usual
// effect of the signals that end ctx.
func (s *session) run(ctx context.Context, giveSignalsBack func(), stdout, stderr io.Writer) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	selected, left := s.src.filter()
	info := s.cfg.info(selected, s.src.Info(), stderr)
	outputs, err := s.cfg.open(stdout, info)
	if err != nil {
		return s.cfg.writeError(err)
	}
	s.src.warn(stderr)
	sum := summary.New(info)
	sinks := []stream.Sink{outputs, sum}
	leave := func() {}
	if s.cfg.view.watch {
		screen, err := s.cfg.newWatch(s.src, stdout, stderr, info, s.interrupt(end), end)
		if err != nil {
			return s.abandon(outputs, outputs, err)
		}
		defer screen.LeaveOnPanic()
		sinks = append(sinks, screen)
		stderr, leave = screen.LogWriter(), screen.Leave
		if s.child != nil {
			s.child.output.set(screen.HoldWriter())
		}
	}
	if s.child != nil {
		sinks = append(sinks, &s.child.oom)
	}
	dst := stream.Tee(sinks...)
	if err := s.src.begin(ctx, stderr, end); err != nil {
		return s.abandon(outputs, dst, err)
	}
	context.AfterFunc(ctx, func() {
		s.src.Stop()
		leaveScreen(leave, giveSignalsBack)
	})
	counts, err := stream.Copy(dst, s.src, left)
	if err != nil && !truncated(err) {
		return s.cfg.writeError(err)
	}
	return errors.Join(s.src.printCounts(stderr, counts), sum.Print(stderr), explain(err))
}

// interrupt returns what Ctrl-C on the screen does.
func (s *session) interrupt(end func()) func() {
	if s.child == nil {
		return end
	}
	return s.child.interrupt
}

// abandon closes dst before the first event, and leaves no new output behind.
func (s *session) abandon(o *outputs, dst stream.Sink, err error) error {
	return errors.Join(err, dst.Close(stream.Counts{}), o.discard())
}

// untilSignal returns a context that ends at a signal that asks chargetrace to stop.
func untilSignal() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
}

// leaveScreen gives the terminal back, and then the signals their usual effect, so that a
// second one ends the process even if the terminal takes no output any more.
func leaveScreen(leave, giveSignalsBack func()) {
	timer := time.AfterFunc(2*time.Second, giveSignalsBack)
	defer timer.Stop()
	leave()
	giveSignalsBack()
}

// printLostStacks prints how many stacks are missing, and how many processes have no
// names in theirs.
func printLostStacks(w io.Writer, c *stream.Counts) {
	if c.LostStacks > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d stacks are missing: the kernel could not take them, or there were too many different ones\n", c.LostStacks)
	}
	if c.UnnamedProcesses > 0 {
		fmt.Fprintf(w, "chargetrace: the user stacks of %d processes are addresses: they could not be looked at, or not in time\n", c.UnnamedProcesses)
	}
}
