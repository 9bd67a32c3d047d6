// Chargetrace shows why a cgroup runs out of memory: each time the kernel asks
// whether some pages still fit under a limit, it prints who asked, for how many
// pages, how many are charged and what the limit is.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"chargetrace/internal/capture"
	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
	"chargetrace/internal/trace"
)

func main() {
	playRole()
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole command. It returns the exit status: that of the command it
// runs, 1 for an error, 2 for wrong usage.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	// A pipe whose reader has gone is to give an error, not a signal, so that
	// what was begun is finished first.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	status, err := dispatch(args, stdin, stdout, stderr)
	if err == nil || isBrokenPipe(err) {
		return status
	}
	// What is wrong with a file is so with each write, and with its end.
	lines := slices.Compact(strings.Split(err.Error(), "\n"))
	fmt.Fprintf(stderr, "chargetrace: %s\n", strings.Join(lines, "\n"))
	var hinted *hintedError
	if errors.As(err, &hinted) {
		fmt.Fprintf(stderr, "hint: %s\n", hinted.hint)
	}
	if errors.As(err, new(usageError)) {
		return 2
	}
	return cmp.Or(status, 1)
}

// dispatch does what args ask for. The status is that of a command that was run.
func dispatch(args []string, stdin io.Reader, stdout, stderr io.Writer) (status int, err error) {
	cfg, err := parseFlags(flag.NewFlagSet("chargetrace", flag.ContinueOnError), args)
	switch {
	case err != nil:
	case cfg.help:
		_, err = io.WriteString(stdout, usage)
	case cfg.version:
		_, err = fmt.Fprintln(stdout, version())
	case cfg.completion != "":
		_, err = io.WriteString(stdout, completion(cfg.completion))
	case cfg.check:
		err = printCheck(stdout)
	case cfg.diff != "":
		err = diff(cfg, stdin, stdout)
	case len(cfg.inputs) > 0:
		err = replay(cfg, stdin, stdout, stderr)
	case len(cfg.command) > 0:
		return runCommand(cfg, args, stdin, stdout, stderr)
	default:
		err = live(cfg, args, nil, stdout, stderr)
	}
	return 0, err
}

// live traces the running kernel until something stops it; where there is a
// command, it lets that begin.
func live(cfg *config, args []string, command *launched, stdout, stderr io.Writer) error {
	ctx := context.Background()
	var cancel context.CancelFunc
	if command == nil {
		ctx, cancel = signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	} else {
		ctx, cancel = context.WithCancel(ctx) // signals are the command's
	}
	defer cancel()

	// Opened first, so that the processes cannot be mistaken for later ones
	// with their numbers.
	targets, err := openProcesses(cfg.pids)
	if err != nil {
		return err
	}
	defer targets.close()
	cgroups, err := openCgroups(cfg)
	if err != nil {
		return err
	}
	defer cgroups.close()

	options := capture.Options{
		PIDs:        cfg.pids,
		Follow:      cfg.follow,
		Forks:       cfg.follow || len(cfg.pids) == 0 && cfg.keepsForks(),
		Comms:       cfg.comm,
		Attach:      cfg.attach,
		BufferBytes: cfg.bufferBytes,
		Kinds:       cfg.kinds,
		MinPages:    cfg.minPages,
		OnlyLimited: cfg.onlyLimited,

		KernelStacks: cfg.stack,
		UserStacks:   cfg.ustack,
		Net:          cfg.net,
	}
	for _, t := range cgroups.targets {
		options.Cgroups = append(options.Cgroups, t.ID)
		options.AboveCgroups = append(options.AboveCgroups, t.Above...)
	}
	tracer, err := capture.Start(options)
	if err != nil {
		f := capture.Explain(err, cfg.attach)
		return &hintedError{fmt.Errorf("cannot trace: %s", f.Detail), f.Hint}
	}
	defer tracer.Close()
	// What was read of the kernel's types is to be collected now and not in the middle
	// of the trace, which allocates little: there it costs as much as thousands of
	// events.
	runtime.GC()
	debug.SetGCPercent(400)
	var src stream.Source = tracer
	header := cfg.header(tracer, stderr)
	if header.Net && cfg.aim().BalancesMemory() {
		r, err := newReadings(tracer, cgroups.targets)
		if err != nil {
			return err
		}
		defer r.Close()
		src = r
	}

	sink, err := cfg.open(stdout, header, recording{meta(tracer, args), func() (trace.Totals, error) {
		c, err := tracer.Counts()
		return trace.Totals{Seen: c.Seen, Filtered: c.Filtered, Lost: c.Lost, LostOthers: c.LostOthers, Missed: c.Missed, Unstacked: c.Unstacked, Unnamed: c.Unnamed}, err
	}, func() bool { return true }})
	if err != nil {
		return cfg.writeError(err)
	}
	if rounded := capture.RoundBuffer(cfg.bufferBytes); rounded != cfg.bufferBytes {
		fmt.Fprintf(stderr, "chargetrace: buffer rounded up to %d bytes, a power of two of pages\n", rounded)
	}
	if cfg.attach == capture.Auto {
		fmt.Fprintf(stderr, "chargetrace: attached with %s\n", tracer.Attached())
	}
	if tracer.LacksFentry() {
		fmt.Fprintf(stderr, "chargetrace: warning: %s\n", capture.NoFentry)
	}
	for _, what := range tracer.Lacking() {
		fmt.Fprintf(stderr, "chargetrace: warning: this kernel has no place to see %s\n", what)
	}
	for _, f := range capture.Unnamed(options) {
		fmt.Fprintf(stderr, "chargetrace: warning: %s\nhint: %s\n", f.Detail, f.Hint)
	}
	sum := summary.New(header)
	sinks := []stream.Sink{sink, sum}
	leave := func() {}
	if cfg.watch {
		interrupt := cancel
		if command != nil {
			// As the terminal does on Ctrl-C.
			interrupt = func() { unix.Kill(0, unix.SIGINT) }
		}
		screen, err := cfg.newWatch(stdout, stderr, header, true, interrupt, cancel)
		if err != nil {
			return errors.Join(err, sink.Close())
		}
		defer screen.LeaveOnPanic()
		sinks = append(sinks, screen)
		stderr, leave = screen.LogWriter(), screen.Leave
		if command != nil {
			command.output.set(screen.HoldWriter())
		}
	}
	if command == nil {
		fmt.Fprintf(stderr, "Tracing %s... Hit Ctrl-C to end.\n", capture.Function)
	} else {
		sinks = append(sinks, &command.oom)
		fmt.Fprintf(stderr, "Tracing %s while %s runs.\n", capture.Function, command.name)
		if err := command.begin(); err != nil {
			return errors.Join(err, stream.Tee(sinks...).Close())
		}
	}

	if cfg.duration > 0 {
		var stopTimer context.CancelFunc
		ctx, stopTimer = context.WithTimeout(ctx, cfg.duration)
		defer stopTimer()
	}
	if len(cfg.pids) > 0 {
		go func() {
			err := targets.wait(func(pid int) {
				if command == nil {
					fmt.Fprintf(stderr, "chargetrace: process %d has exited\n", pid)
				}
			})
			if err == nil && cfg.follow && command == nil {
				err = tracer.WaitTargets(ctx)
			}
			if err != nil {
				fmt.Fprintf(stderr, "chargetrace: warning: the end of the processes will not be noticed: %v\n", err)
				return
			}
			cancel()
		}()
	}
	if len(cgroups.targets) > 0 {
		go func() {
			if err := cgroups.wait(); err != nil {
				fmt.Fprintf(stderr, "chargetrace: warning: the end of the cgroups will not be noticed: %v\n", err)
				return
			}
			fmt.Fprintf(stderr, "chargetrace: %s was removed\n", cgroups)
			cancel()
		}()
	}
	context.AfterFunc(ctx, func() {
		src.Stop()
		leaveScreen(leave, cancel)
	})

	defer capture.Prioritize()()
	res, err := stream.Copy(stream.Tee(sinks...), src, cfg.liveAim())
	if err != nil {
		return cfg.writeError(err)
	}
	counts, err := tracer.Counts()
	if err != nil {
		return err
	}
	sum.Coverage.Unseen = counts.Lost + counts.LostOthers + counts.Missed
	return errors.Join(
		printCounts(stderr, res, counts, cfg.bufferBytes),
		sum.Print(stderr),
	)
}

// leaveScreen gives the terminal back and then signals, so that a second one finds
// its usual effect: also where the terminal takes nothing any more.
func leaveScreen(leave, giveSignalsBack func()) {
	timer := time.AfterFunc(2*time.Second, giveSignalsBack)
	defer timer.Stop()
	leave()
	giveSignalsBack()
}

// meta says what makes a recording.
func meta(tracer *capture.Tracer, args []string) trace.Meta {
	h := tracer.Header()
	m := trace.Meta{
		PageSize: h.PageSize, StartBootNanos: h.StartBootNanos, BootWallNanos: h.BootWallNanos,
		Program: version(), CommandLine: append([]string{"chargetrace"}, args...), Attach: tracer.Attached(), Arch: runtime.GOARCH,
		KernelStacks: h.KernelStacks, UserStacks: h.UserStacks,
	}
	var uname unix.Utsname
	if unix.Uname(&uname) == nil {
		m.Host, m.Kernel = unix.ByteSliceToString(uname.Nodename[:]), unix.ByteSliceToString(uname.Release[:])
	}
	return m
}

// columns returns how wide the output may be: what COLUMNS says, as with ps(1),
// or the width of the terminal that w is, or 0.
func columns(w io.Writer) int {
	if n, err := strconv.ParseUint(os.Getenv("COLUMNS"), 10, 16); err == nil {
		return int(n)
	}
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// printCounts prints how many charges there were and what became of them.
func printCounts(w io.Writer, res stream.Result, c capture.Counts, bufferBytes int) error {
	filtered := c.Filtered + res.Filtered
	fmt.Fprintf(w, "chargetrace: seen %d = shown %d + filtered %d + lost %d\n", c.Seen, res.Shown, filtered, c.Lost)
	if c.Lost > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d events were lost, the buffer was full\n", c.Lost)
		fmt.Fprintf(w, "hint: -buffer %d doubles it; -pid leaves out what is not of interest\n", 2*capture.RoundBuffer(bufferBytes))
	}
	if c.LostOthers > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d events that are no charges were lost as well\n", c.LostOthers)
	}
	if c.Unfollowed > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d processes were forked, but not followed: there were too many\n", c.Unfollowed)
	}
	printStackLoss(w, c.Unstacked, c.Unnamed)
	if c.Missed > 0 {
		fmt.Fprintf(w, "chargetrace: warning: the kernel missed %d calls, which are not counted above: a probe was already running on that CPU\n", c.Missed)
	}
	if c.Seen != res.Shown+filtered+c.Lost {
		return errors.New("the counts of this trace do not add up: it is not complete")
	}
	return nil
}

// printStackLoss prints how many stacks are missing, and how many processes have no
// names in theirs.
func printStackLoss(w io.Writer, unstacked, unnamed uint64) {
	if unstacked > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d stacks are missing: the kernel could not take them, or there were too many different ones\n", unstacked)
	}
	if unnamed > 0 {
		fmt.Fprintf(w, "chargetrace: the user stacks of %d processes are addresses: they could not be looked at, or not in time\n", unnamed)
	}
}

// printCheck prints what this kernel and this user offer, and fails if that is
// not enough.
func printCheck(w io.Writer) error {
	findings := capture.Check()
	if capture.Blocking(findings, capture.Kprobe) == nil {
		findings = append(findings, capture.Try(capture.Kprobe), capture.TryNet())
	}
	if capture.Blocking(findings, capture.Fentry) == nil {
		findings = append(findings, capture.Try(capture.Fentry))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-18s %-8s %s\n", "CHECK", "RESULT", "FOUND")
	for _, f := range findings {
		fmt.Fprintf(&b, "%-18s %-8s %s\n", f.Name, f.State, f.Detail)
		if f.Hint != "" {
			fmt.Fprintf(&b, "%-18s %-8s hint: %s\n", "", "", f.Hint)
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	switch blocked := capture.Blocking(findings, capture.Auto); {
	case blocked != nil:
		return errors.New("this kernel cannot be traced by this user, for the reasons above")
	case capture.Blocking(findings, capture.Kprobe) != nil:
		return &hintedError{errors.New("-attach kprobe, the default, does not work here"), "-attach fentry does"}
	}
	return nil
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "chargetrace, built without module support"
	}
	v := "chargetrace " + info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v += " " + s.Value
		}
	}
	return v + " " + info.GoVersion
}
