package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"chargetrace/internal/capture"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/sampler"
	"chargetrace/internal/stream"
	"chargetrace/internal/watch"
)

// live traces the running kernel until a signal, a limit, or the end of the traced
// processes or cgroups.
func live(cfg *config, args []string, child *child, stdout, stderr io.Writer) (err error) {
	ctx, cancel := context.WithCancel(context.Background())
	if child == nil { // otherwise signals go to the command
		ctx, cancel = cfg.untilSignal(stderr)
	}
	defer cancel()
	if untested := capture.UntestedWarning(runtime.GOARCH); untested != "" {
		fmt.Fprintf(stderr, "chargetrace: warning: %s\n", untested)
	}
	var saves chan os.Signal
	if cfg.recorder.keep > 0 {
		var stop func()
		saves, stop = saveSignals(child == nil && !hangsUp(stderr))
		defer stop()
	}
	interval := capture.DefaultInterval
	// Without a terminal, fewer wakeups matter more than the delay. With user stacks they do
	// not: a stack can be resolved only while its process exists.
	if (!isTerminal(stdout) || cfg.recorder.keep > 0) && !cfg.kernel.ustack {
		interval = 200 * time.Millisecond
	}
	src, err := newKernelSource(cfg, args, child, interval)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	defer capture.Prioritize()()
	s := session{cfg: cfg, src: src, child: child, saves: saves}
	return s.start(ctx, cancel, stdout, stderr)
}

// kernelSource is the source that traces the running kernel.
type kernelSource struct {
	stream.Source // the tracer, or a sampler that wraps it
	tracer        *capture.Tracer
	options       capture.Options
	info          stream.Info
	cfg           *config
	child         *child // nil: no command is run

	targets *processes
	cgroups *cgroups
	left    stream.Filter // what the kernel does not filter
	closers []func()
	// closeErr is what the tracer failed with when it was closed.
	closeErr error
}

// newKernelSource starts to trace the command, or what the flags select.
func newKernelSource(cfg *config, args []string, child *child, interval time.Duration) (_ *kernelSource, err error) {
	s := &kernelSource{cfg: cfg, child: child}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	filter := cfg.filter
	if child != nil {
		filter.PIDs, filter.Follow = []uint32{child.pid}, true
	}
	// Open the processes first: later their pids could be reused.
	if s.targets, err = openProcesses(filter.PIDs); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.targets.close)
	finder, err := container.NewFinder(cfg.kernel.root)
	if err != nil {
		return nil, &hintedError{err, "-root is where the root directory of the machine is mounted"}
	}
	s.closers = append(s.closers, func() { finder.Close() })
	if s.cgroups, err = openCgroups(filter, finder.Find); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.cgroups.close)

	s.options = capture.Options{
		Filter: filter, Attach: cfg.kernel.attach, BufferBytes: cfg.kernel.bufferBytes,
		Forks:        filter.Follow || len(filter.PIDs) == 0 && cfg.writesRecording(),
		KernelStacks: cfg.kernel.stack, UserStacks: cfg.kernel.ustack, Net: cfg.kernel.net,
		Interval: interval, ThresholdPercent: cfg.recorder.when.Percent, Releases: cfg.recorder.keep > 0 || cfg.onlyRotates(),
	}
	for _, t := range s.cgroups.targets {
		s.options.CgroupIDs = append(s.options.CgroupIDs, t.ID)
		s.options.AboveIDs = append(s.options.AboveIDs, t.Above...)
	}
	if cfg.kernel.attach == capture.Fentry {
		// The library parses all of the kernel's types, and keeps little of what it allocates.
		debug.SetGCPercent(40)
	}
	if s.tracer, err = capture.Start(s.options); err != nil {
		f := capture.Explain(err, cfg.kernel.attach)
		return nil, &hintedError{fmt.Errorf("cannot trace: %s", f.Detail), f.Hint}
	}
	s.closers = append(s.closers, func() { s.closeErr = s.tracer.Close() })
	// Collect the garbage of BTF parsing now: a GC cycle during the trace costs as much
	// as thousands of events. The screen keeps more than other sinks.
	runtime.GC()
	percent := 400
	if cfg.view.watch {
		percent = 100
	}
	debug.SetGCPercent(percent)

	trees, err := cgroup.Trees()
	if err != nil {
		trees = nil // without the file system, what cgroups hold is unknown
	}
	clock := sampler.NewClock(s.tracer, capture.BootNanos, time.Now)
	if watch, err := clock.Watch(); err == nil { // otherwise steps are dated less exactly
		s.closers = append(s.closers, func() { watch.Close() })
	}
	s.Source = clock
	s.Source, s.info = sampler.NewHeld(s.Source, trees, capture.BootNanos), s.tracer.Info()
	s.info.Program, s.info.CommandLine = version(), append([]string{"chargetrace"}, args...)
	if s.left = filter.Left(); s.cgroups.byID {
		s.left.Containers = nil
	}
	if s.info.Net && filter.BalancesMemory() {
		r, err := sampler.New(s.Source, s.cgroups.targets, capture.BootNanos)
		if err != nil {
			return nil, err
		}
		s.closers = append(s.closers, r.Close)
		s.Source = r
	}
	s.Source = sampler.NewNames(s.Source, finder.Find, capture.BootNanos)
	return s, nil
}

// close frees what the source holds, last first.
func (s *kernelSource) close() error {
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
	return s.closeErr
}

func (s *kernelSource) Info() stream.Info { return s.info }

// filter implements source. The kernel filters by process and cgroup, with its own pids and
// ids, as far as these are known.
func (s *kernelSource) filter() (selected, left stream.Filter) {
	return s.options.Filter, s.left
}

func (s *kernelSource) completeScreen(o *watch.Options) error {
	trees, err := cgroup.Trees()
	if err != nil {
		return err
	}
	o.Now = capture.BootNanos
	o.Memory = func(id event.CgroupID, path string) (cgroup.Memory, bool) { return cgroup.ReadMemory(trees, id, path) }
	return nil
}

func (s *kernelSource) warn(stderr io.Writer) {
	if rounded := capture.RoundBuffer(s.cfg.kernel.bufferBytes); rounded != s.cfg.kernel.bufferBytes {
		fmt.Fprintf(stderr, "chargetrace: buffer rounded up to %d bytes, a power of two of pages\n", rounded)
	}
	for _, note := range s.cgroups.notes {
		fmt.Fprintln(stderr, note)
	}
	if s.cfg.kernel.attach == capture.Auto {
		fmt.Fprintf(stderr, "chargetrace: attached with %s\n", s.info.Attach)
	}
	if s.tracer.LacksFentry() {
		fmt.Fprintf(stderr, "chargetrace: warning: %s\n", capture.NoFentryWarning)
	}
	for _, what := range s.tracer.Lacking() {
		fmt.Fprintf(stderr, "chargetrace: warning: this kernel has no hook for %s\n", what)
	}
	for _, f := range capture.SymbolFindings(s.options) {
		fmt.Fprintf(stderr, "chargetrace: warning: %s\nhint: %s\n", f.Detail, f.Hint)
	}
}

// begin implements source. It starts the command, and watches for the end of the trace.
func (s *kernelSource) begin(ctx context.Context, stderr io.Writer, end func()) error {
	if s.child == nil {
		fmt.Fprintf(stderr, "Tracing %s... Hit Ctrl-C to end.\n", capture.TracedFunction)
	} else {
		fmt.Fprintf(stderr, "Tracing %s while %s runs.\n", capture.TracedFunction, s.child.name)
		if err := s.child.begin(); err != nil {
			return err
		}
	}
	if s.cfg.duration > 0 {
		time.AfterFunc(s.cfg.duration, end)
	}
	if len(s.options.PIDs) > 0 {
		go s.awaitProcesses(ctx, stderr, end)
	}
	if len(s.cgroups.targets) > 0 {
		go s.awaitCgroups(stderr, end)
	}
	return nil
}

// awaitProcesses calls end when the traced processes have exited.
func (s *kernelSource) awaitProcesses(ctx context.Context, stderr io.Writer, end func()) {
	err := s.targets.wait(func(pid int) {
		if s.child == nil {
			fmt.Fprintf(stderr, "chargetrace: process %d has exited\n", pid)
		}
	})
	if err == nil && s.options.Follow && s.child == nil {
		err = s.tracer.WaitTargets(ctx)
	}
	if err != nil {
		fmt.Fprintf(stderr, "chargetrace: warning: cannot detect the end of the processes: %v\n", err)
		return
	}
	end()
}

// awaitCgroups calls end when the traced cgroups are removed.
func (s *kernelSource) awaitCgroups(stderr io.Writer, end func()) {
	if err := s.cgroups.wait(); err != nil {
		fmt.Fprintf(stderr, "chargetrace: warning: cannot detect the end of the cgroups: %v\n", err)
		return
	}
	fmt.Fprintf(stderr, "chargetrace: %s was removed\n", s.cgroups)
	end()
}

func (s *kernelSource) printCounts(w io.Writer, c stream.Counts) error {
	filtered := c.Filtered + c.Read - c.Shown
	fmt.Fprintf(w, "chargetrace: seen %d = shown %d + filtered %d + lost %d\n", c.Seen, c.Shown, filtered, c.Lost)
	if c.Shown+c.Lost == 0 && filtered > 0 && s.child == nil {
		fmt.Fprintf(w, "chargetrace: none of %d charges matched the filters\nhint: without filters, chargetrace -wide shows who charges what\n", filtered)
	}
	if c.Lost > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d events were lost, the buffer was full\n", c.Lost)
		fmt.Fprintf(w, "hint: -buffer %d doubles it; -pid and other filters reduce the events\n", 2*capture.RoundBuffer(s.cfg.kernel.bufferBytes))
	}
	if c.LostNonCharge > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d other events were lost as well\n", c.LostNonCharge)
	}
	if c.Unfollowed > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d processes were forked, but not followed: too many\n", c.Unfollowed)
	}
	printLostStacks(w, &c)
	if c.Missed > 0 {
		fmt.Fprintf(w, "chargetrace: warning: the kernel missed %d calls, which are not counted above: a probe was already running on that CPU, or their return was not seen\n", c.Missed)
	}
	if c.Seen != c.Shown+filtered+c.Lost {
		return errors.New("the counts of this trace do not add up: it is not complete")
	}
	return nil
}
