package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/recorder"
	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
	"chargetrace/internal/watch"
	"chargetrace/internal/world"
)

// source provides the events of a session: a trace of the running kernel, or recordings.
type source interface {
	stream.Source
	// filter returns the filter of the events to show, and the part of it that the source
	// does not apply itself.
	filter() (selected, left stream.Filter)
	// completeScreen sets the screen's clock and access to cgroups, if the source has them.
	completeScreen(*watch.Options) error
	// warn prints warnings about the trace, such as of missing hooks and symbols.
	warn(stderr io.Writer)
	// completeRecorder sets the counts and the clock of a flight recorder, if the source has
	// them.
	completeRecorder(*recorder.Options)
	// begin is called when the outputs are ready. The source calls end when everything it
	// traces is gone, unless ctx is done before.
	begin(ctx context.Context, stderr io.Writer, end func()) error
	// printCounts prints the counts of shown, filtered and lost charges.
	printCounts(stderr io.Writer, c stream.Counts) error
}

// session is one run of the command: it copies the events of a source to the outputs.
type session struct {
	cfg   *config
	src   source
	child *child // nil: no command is run
	// saves delivers the signals that make the flight recorder save; nil: there are none.
	saves <-chan os.Signal
}

// child is the command that chargetrace runs and traces.
type child struct {
	name string // printable
	pid  uint32
	// begin starts it.
	begin func() error
	// interrupt does what Ctrl-C in the terminal of chargetrace and the command would.
	interrupt func()
	// oomKill describes its OOM kill, at the end of the session; empty if there was none.
	oomKill string
	output  lateWriter // the destination of its output while the screen is shown
}

// start runs the trace, or the replay.
func (s *session) start(ctx context.Context, restoreSignals func(), stdout, stderr io.Writer) error {
	switch {
	case s.cfg.recorder.keep > 0:
		return s.record(ctx, restoreSignals, stderr)
	case s.cfg.onlyRotates():
		return s.rotate(ctx, restoreSignals, stderr)
	}
	return s.run(ctx, restoreSignals, stdout, stderr)
}

// run copies events until the source ends or ctx is done. restoreSignals restores the
// default effect of the signals that end ctx.
func (s *session) run(ctx context.Context, restoreSignals func(), stdout, stderr io.Writer) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	selected, left := s.src.filter()
	info := s.cfg.shownInfo(selected, s.src.Info(), stderr)
	sum := summary.New(verdict.New(world.New(info), s.cfg.view.format))
	if isTerminal(stderr) {
		sum.Columns = columns(stderr)
		if isTerminal(stdout) { // the table has the same sentences
			sum.NameWidth = text.MaxName
		}
	}
	var log lateWriter // the outputs' goroutines write to it
	log.set(stderr)
	outputs, err := s.cfg.open(stdout, &log, sum)
	if err != nil {
		return s.cfg.writeError(err)
	}
	s.src.warn(stderr)
	sinks := []stream.Sink{sum, outputs}
	leave, pace := func() {}, func(dst stream.Sink) stream.Sink { return dst }
	if s.cfg.view.watch {
		screen, err := s.cfg.newWatch(s.src, stdout, stderr, sum.Verdict, s.interrupt(end), end)
		if err != nil {
			return s.abandon(outputs, outputs, err)
		}
		defer screen.LeaveOnPanic()
		sinks = append(sinks, screen)
		pace = screen.Pace
		stderr, leave = screen.LogWriter(), screen.Leave
		log.set(stderr)
		if s.child != nil {
			s.child.output.set(screen.HoldWriter())
		}
	}
	dst := pace(sum.Feed(stream.Tee(sinks...)))
	if err := s.src.begin(ctx, stderr, end); err != nil {
		return s.abandon(outputs, dst, err)
	}
	context.AfterFunc(ctx, func() {
		s.src.Stop()
		leaveScreen(leave, restoreSignals)
	})
	counts, err := stream.Copy(dst, s.src, left)
	if s.child != nil {
		s.child.oomKill = oomKillOf(s.child.pid, sum)
	}
	if err != nil && !truncated(err) {
		return s.cfg.writeError(err)
	}
	err = errors.Join(s.src.printCounts(stderr, counts), sum.Print(stderr), explain(err))
	if counts.Shown == 0 && counts.Read > 0 && len(s.cfg.play.paths) > 0 {
		printDropped(stderr, &counts, &sum.Names)
	}
	return err
}

// printDropped prints which charges a recording has, if none matched the filters.
func printDropped(w io.Writer, c *stream.Counts, names *cgroup.Names) {
	var tasks, cgroups, kinds []string
	for _, t := range c.Dropped.Tasks {
		if t != (stream.Task{}) {
			tasks = append(tasks, t.Comm.Of(t.PID))
		}
	}
	for _, id := range c.Dropped.Cgroups {
		if id != (event.CgroupID{}) {
			cgroups = append(cgroups, names.Label(id))
		}
	}
	for k := event.Unknown; event.AllKinds.Has(k); k++ {
		if c.Dropped.Kinds.Has(k) {
			kinds = append(kinds, k.String())
		}
	}
	fmt.Fprintf(w, "chargetrace: none of %d charges matched the filters\nhint: there were charges by %s, to %s (%s)\n", c.Read,
		list(tasks, len(c.Dropped.Tasks)), list(cgroups, len(c.Dropped.Cgroups)), strings.Join(kinds, ", "))
}

// list joins names. If there are limit of them, there may be others.
func list(names []string, limit int) string {
	s := strings.Join(names, ", ")
	if len(names) == limit {
		s += " and others"
	}
	return s
}

// interrupt returns what Ctrl-C does on the screen.
func (s *session) interrupt(end func()) func() {
	if s.child == nil {
		return end
	}
	return s.child.interrupt
}

// oomKillOf describes the OOM kill of a process, or returns an empty string.
func oomKillOf(pid uint32, sum *summary.Summary) string {
	for _, k := range sum.Kills {
		if k.Victim.PID == pid {
			return fmt.Sprintf("%s was killed by the OOM killer: %s", k.Victim.Comm.Of(pid), sum.RanOut(k.OOM))
		}
	}
	return ""
}

// abandon closes dst before the first event, and leaves no new output behind.
func (s *session) abandon(o *outputs, dst stream.Sink, err error) error {
	return errors.Join(err, dst.Close(stream.Counts{}), o.discard())
}

// untilSignal returns a context that ends at SIGINT, SIGTERM or SIGHUP; see saveSignals.
func (cfg *config) untilSignal(stderr io.Writer) (context.Context, context.CancelFunc) {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if cfg.recorder.keep == 0 || hangsUp(stderr) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signal.NotifyContext(context.Background(), signals...)
}

// hangsUp reports whether SIGHUP says that the terminal is gone.
func hangsUp(stderr io.Writer) bool { return isTerminal(stderr) || isTerminal(os.Stdin) }

// leaveScreen restores the terminal, and then the default effect of signals. If the
// terminal blocks, it restores the signals after 2 s, so that a second one ends the process.
func leaveScreen(leave, restoreSignals func()) {
	timer := time.AfterFunc(2*time.Second, restoreSignals)
	defer timer.Stop()
	leave()
	restoreSignals()
}

// printLostStacks prints the number of missing stacks, and of processes whose stacks are
// not resolved.
func printLostStacks(w io.Writer, c *stream.Counts) {
	if c.LostStacks > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d stacks are missing: the kernel could not collect them, or there were too many different ones\n", c.LostStacks)
	}
	if c.UnnamedProcesses > 0 {
		fmt.Fprintf(w, "chargetrace: the user stacks of %d processes are addresses: the processes could not be read, or not in time\n", c.UnnamedProcesses)
	}
}
