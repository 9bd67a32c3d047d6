package main

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"time"

	"chargetrace/internal/capture"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
)

// config holds the values of the flags.
type config struct {
	filter stream.Filter
	comms  []string // the patterns of filter.Comms
	// duration limits the trace or replay; 0 is no limit.
	duration time.Duration

	kernel kernelFlags
	play   playFlags
	child  childFlags
	view   viewFlags
	out    outputFlags

	recorder recorderFlags

	// Actions other than a trace.
	check      bool
	completion string // a shell
	version    bool
	help       bool
}

// kernelFlags configure the trace of the running kernel.
type kernelFlags struct {
	stack, ustack, net bool
	attach             capture.Attach
	bufferBytes        int
	root               string // where the machine's files are
}

// playFlags select the recordings to play.
type playFlags struct {
	paths    []string // none: the running kernel is traced
	from, to string
	follow   bool
	diff     string // another recording
}

// childFlags configure the command to run.
type childFlags struct {
	argv   []string
	user   string // empty: the user who called sudo, or that of chargetrace
	limits cgroup.Limits
}

// viewFlags configure the table and the screen.
type viewFlags struct {
	wide, watch bool
	format      text.Format
}

// outputFlags select the outputs.
type outputFlags struct {
	paths  []string
	format string
	force  bool
	// A new recording starts after rotateBytes or rotateAfter; 0 is never. The last keep
	// recordings are kept, or those that have keepBytes together; 0 is all.
	rotateBytes int64
	rotateAfter time.Duration
	keep        int
	keepBytes   int64

	outputs []output // of paths and format
}

// parseFlags defines the flags in fs and parses args.
func parseFlags(fs *flag.FlagSet, args []string) (*config, error) {
	cfg := new(config)
	cfg.view.format.Time, cfg.kernel.bufferBytes = text.Relative, capture.DefaultBufferBytes
	fs.SetOutput(io.Discard)
	cfg.filterFlags(fs)
	cfg.kernel.define(fs)
	cfg.play.define(fs)
	cfg.child.define(fs)
	cfg.view.define(fs)
	cfg.out.define(fs)
	cfg.recorder.define(fs)
	fs.Func("for", "", set(&cfg.duration, parsePositiveDuration))
	fs.BoolVar(&cfg.check, "check", false, "")
	fs.Func("completion", "", set(&cfg.completion, parseShell))
	fs.BoolVar(&cfg.version, "version", false, "")
	fs.BoolVar(&cfg.help, "h", false, "")
	fs.BoolVar(&cfg.help, "help", false, "")
	if err := fs.Parse(args); err != nil {
		return nil, usageErrorf("%w", err)
	}
	if err := cfg.child.parseCommand(args, fs.Args()); err != nil {
		return nil, err
	}
	if cfg.recorder.keep == 0 && (len(cfg.out.paths) > 0 || !cfg.view.watch) { // the screen replaces the table
		if err := cfg.out.parseOutputs(); err != nil {
			return nil, err
		}
	}
	return cfg, cfg.validate()
}

// set returns a function for [flag.FlagSet.Func] that stores the parsed value.
func set[T any](value *T, parse func(string) (T, error)) func(string) error {
	return func(s string) (err error) {
		*value, err = parse(s)
		return err
	}
}

func (cfg *config) filterFlags(fs *flag.FlagSet) {
	f := &cfg.filter
	fs.Func("pid", "", func(s string) (err error) { f.PIDs, err = appendPIDs(f.PIDs, s); return })
	fs.BoolVar(&f.Follow, "f", false, "")
	fs.Func("comm", "", func(s string) error { return cfg.addComm(s) })
	fs.Func("cgroup", "", func(s string) error { return addCgroup(f, s) })
	fs.Func("container", "", func(s string) (err error) { f.Containers, err = appendPattern(f.Containers, s); return })
	fs.Func("pod", "", func(s string) (err error) { f.Pods, err = appendPattern(f.Pods, s); return })
	fs.Func("namespace", "", func(s string) (err error) { f.Namespaces, err = appendPattern(f.Namespaces, s); return })
	fs.Func("min-pages", "", set(&f.MinPages, parseCount))
	fs.Func("counter", "", set(&f.Kinds, event.ParseKinds))
	fs.BoolVar(&f.OnlyLimited, "limited", false, "")
	fs.BoolVar(&f.Misses, "misses", false, "")
	fs.Func("n", "", set(&f.MaxCharges, parseCount))
}

func (k *kernelFlags) define(fs *flag.FlagSet) {
	fs.BoolVar(&k.stack, "stack", false, "")
	fs.BoolVar(&k.ustack, "ustack", false, "")
	fs.BoolVar(&k.net, "net", false, "")
	fs.Func("attach", "", set(&k.attach, capture.ParseAttach))
	fs.Func("buffer", "", set(&k.bufferBytes, parseBuffer))
	fs.StringVar(&k.root, "root", "/", "")
}

func (p *playFlags) define(fs *flag.FlagSet) {
	fs.Func("r", "", func(s string) error { p.paths = append(p.paths, s); return nil })
	fs.StringVar(&p.from, "from", "", "")
	fs.StringVar(&p.to, "to", "", "")
	fs.BoolVar(&p.follow, "follow", false, "")
	fs.StringVar(&p.diff, "diff", "", "")
}

func (c *childFlags) define(fs *flag.FlagSet) {
	fs.StringVar(&c.user, "user", "", "")
	fs.Func("memory", "", set(&c.limits.MemoryBytes, parseSize))
	fs.Func("high", "", set(&c.limits.HighBytes, parseSize))
	fs.Func("swap", "", set(&c.limits.SwapBytes, parseSwap))
}

func (v *viewFlags) define(fs *flag.FlagSet) {
	fs.BoolVar(&v.wide, "wide", false, "")
	fs.BoolVar(&v.watch, "watch", false, "")
	fs.Func("units", "", set(&v.format.Units, text.ParseUnits))
	fs.Func("time", "", set(&v.format.Time, text.ParseTimeFormat))
}

func (o *outputFlags) define(fs *flag.FlagSet) {
	fs.Func("o", "", func(s string) error { o.paths = append(o.paths, s); return nil })
	fs.StringVar(&o.format, "format", "", "")
	fs.BoolVar(&o.force, "force", false, "")
	fs.Func("rotate", "", o.parseRotate)
	fs.Func("keep-size", "", set(&o.keepBytes, parseSize))
	fs.Func("keep", "", func(s string) error { n, err := parseCount(s); o.keep = int(min(n, 1<<30)); return err })
}

func (r *recorderFlags) define(fs *flag.FlagSet) {
	r.after, r.every = defaultAfter, defaultEvery
	fs.Func("keep-last", "", r.parseKeep)
	fs.Func("when", "", r.when.Parse)
	fs.Func("after", "", set(&r.after, parseDuration))
	fs.Func("every", "", set(&r.every, parseDuration))
	fs.BoolVar(&r.report, "report", false, "")
	fs.Func("exec", "", r.parseCommand)
	fs.Func("grace", "", set(&r.graceBytes, parseSize))
}

// parseCommand sets the command to the remaining arguments. They must follow --.
func (c *childFlags) parseCommand(args, left []string) error {
	separator := len(args) - len(left) - 1
	switch {
	case separator >= 0 && args[separator] == "--":
		if len(left) == 0 {
			return usageErrorf("there is no command after --")
		}
		c.argv = left
	case len(left) > 0:
		return usageErrorf("unexpected argument %q: put a command after --", left[0])
	}
	return nil
}

// validate returns an error if flags cannot be combined.
func (cfg *config) validate() error {
	f, k, p, c, v, o := &cfg.filter, &cfg.kernel, &cfg.play, &cfg.child, &cfg.view, &cfg.out
	plays, runs, compares := len(p.paths) > 0, c.argv != nil, p.diff != ""
	keepsLast := cfg.recorder.keep > 0
	rotates := cfg.rotates()
	isRecording := func(x output) bool { return x.format == "ctrace" && x.path != "-" }
	comparable := len(o.outputs) == 1 && (o.outputs[0].format == "table" || o.outputs[0].format == "html")
	for _, rule := range []struct {
		broken  bool
		message string
	}{
		{!runs && (c.user != "" || c.limits != cgroup.Limits{}), "-user, -memory, -swap and -high require a command, after --"},
		{runs && len(f.PIDs) > 0, "-pid traces running processes, and cannot be combined with a command"},
		{runs && plays, "-r plays a recording, and cannot be combined with a command"},
		{runs && cfg.check, "-check cannot be combined with a command"},

		{!plays && (p.from != "" || p.to != "" || p.follow), "-from, -to and -follow require -r"},
		{plays && (k.stack || k.ustack), "-stack and -ustack apply while tracing: a recording has the stacks it was made with"},
		{plays && k.root != "/", "-root applies while tracing: a recording has the names that were found"},
		{plays && k.net, "-net applies while tracing: a recording has the uncharges it was made with"},
		{k.net && (f.OnlyLimited || f.MinPages > 0 || f.MaxCharges > 0), "-net needs all charges; -limited, -min-pages and -n drop some"},
		{f.Misses && !f.OnlyLimited, "-misses requires -limited; without that batch misses are shown"},
		{p.isEmpty(), fmt.Sprintf("-to %s is not after -from %s", p.to, p.from)},
		{p.stdins() > 1, "stdin can be played only once"},
		{f.Follow && len(f.PIDs) == 0 && !runs, "-f requires -pid"},

		{v.watch && (v.wide || compares || slices.Contains(o.paths, "-") || o.format != "" && len(o.paths) == 0),
			"-watch replaces the table and any other output on stdout"},
		{(o.keep > 0 || o.keepBytes > 0) && !rotates && !keepsLast, "-keep and -keep-size require -rotate or -keep-last"},
		{!keepsLast && !cfg.recorder.isEmpty(), "-when, -after, -every, -report, -exec and -grace require -keep-last"},
		{keepsLast && (len(o.paths) != 1 || !isFolder(o.paths[0])), "-keep-last requires one -o DIR/, a directory for the recordings"},
		{keepsLast && (v.watch || v.wide || compares || o.format != "" || rotates || o.force),
			"-keep-last saves recordings alone, and cannot be combined with -watch, -wide, -diff, -format, -rotate or -force"},
		{keepsLast && f.MinPages > 0 && cfg.recorder.when.Percent > 0, "-when with a percentage needs all charges; -min-pages drops some"},
		{plays && cfg.recorder.command != nil, "-exec applies while tracing"},
		{plays && cfg.recorder.when.Percent > 0, "-when with a percentage applies while tracing"},
		{keepsLast && cfg.recorder.after > cfg.recorder.keep && cfg.recorder.after != defaultAfter, "-after is longer than -keep-last"},
		{cfg.recorder.graceBytes > 0 && (cfg.recorder.command == nil || cfg.recorder.when.Percent == 0),
			"-grace raises the limit while -exec runs: it requires -exec, and -when with a percentage, such as 95%"},
		{rotates && !slices.ContainsFunc(o.outputs, isRecording), "-rotate requires -o x.ctrace"},

		{compares && !plays, "-diff requires -r, the recording to compare with"},
		{compares && p.follow, "-diff compares whole recordings, and -follow waits for more"},
		{compares && !comparable, "-diff has one output: a table or .html"},
		{compares && (v.wide || v.format.Units != ""), "-diff prints no rows of charges; -units and -wide apply to those"},
	} {
		if rule.broken {
			return usageErrorf("%s", rule.message)
		}
	}
	return nil
}

// rotates reports whether recordings are rotated.
func (cfg *config) rotates() bool { return cfg.out.rotateBytes > 0 || cfg.out.rotateAfter > 0 }

// isEmpty reports whether no time is between -from and -to, as far as that does not depend on
// the start of a recording.
func (p *playFlags) isEmpty() bool {
	from, fromErr := time.ParseDuration(p.from)
	to, toErr := time.ParseDuration(p.to)
	return fromErr == nil && toErr == nil && to <= from
}

// stdins counts the uses of stdin as a recording.
func (p *playFlags) stdins() (n int) {
	for _, path := range append(slices.Clone(p.paths), p.diff) {
		if path == "-" {
			n++
		}
	}
	return n
}
