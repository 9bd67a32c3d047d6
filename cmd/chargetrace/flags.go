package main

import (
	"cmp"
	"flag"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"chargetrace/internal/capture"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/glob"
	"chargetrace/internal/stream"
	"chargetrace/internal/table"
	"chargetrace/internal/text"
)

const usage = `Usage: chargetrace [flags] [-- command [arg ...]]

Shows each charge of memory to a cgroup: who asked, for how many pages, how
many are charged, and the limit. Rows at the limit end in *. At the end, a
summary by cgroup and process: limits hit, reclaim, OOM kills.

Examples:
  sudo chargetrace -memory 10M -- ./alloc  run ./alloc with 10 MiB, and see it fail
  sudo chargetrace -pid 4711               what process 4711 charges, to its exit
  sudo chargetrace -pid 4711 -f            and what it forks
  sudo chargetrace -cgroup /system.slice   what is charged there, and below
  sudo chargetrace -pid 4711,4712 -n 100   the first 100 charges of two processes
  sudo chargetrace -for 10s -time clock    all charges of ten seconds
  sudo chargetrace -limited -wide          whatever hits a limit, at which level
  sudo chargetrace -watch                  a live screen: what fills up, how fast
  sudo chargetrace -o oom.ctrace           record, for a look at any time, anywhere:
  chargetrace -r oom.ctrace -limited       with flags as above
  chargetrace -r oom.ctrace -o oom.html    a report to look at in a browser
  chargetrace -check                       can this kernel be traced by this user?

Where from:
  -r FILE           a recording instead of the running kernel; - is stdin;
                    repeatable, one after the other. Needs no root
  -from TIME        from then on: since the start, as in 90s, or 15:04:05
  -to TIME          up to then
  -follow           at its end, wait for what is still being recorded
  -diff FILE        compare what -r plays with this recording, by cgroup, process
                    and kind of counter: a table, or a page, with -o FILE.html

What to run:
  -- COMMAND [ARG ...]
                    what it charges from its start on, and all that it forks;
                    ends when it does, with its exit status. Under sudo it runs
                    as the user who called
  -user NAME        as this user, or the one of this number; root stays root
  -memory SIZE      in a cgroup of its own with this limit, as in 10M or 1g. At
                    the end what is left in it is killed, and it is removed
  -swap SIZE        with this limit of swap there; 0 is none
  -high SIZE        slowed down from this size on there (cgroup v2)

What to trace (all that is asked for must hold, and of what is repeated, any):
  -pid N[,N...]     repeatable; these processes only; ends when the last has
                    exited
  -f                and what they fork, or have forked
  -comm GLOB        repeatable; threads of that name only, as in 'java' or
                    'kworker/*'
  -cgroup PATH      repeatable; charges to that cgroup or one below it: as in
                    /proc/PID/cgroup, or with /sys/fs/cgroup before it; ends when
                    the last is removed
  -container ID     repeatable; likewise of a container, by the beginning of its
                    id
  -counter KIND[,KIND...]
                    these kinds of counters only: memory, swap, hugetlb,
                    hugetlb_rsvd, dmem, and of cgroup v1 memsw, kmem, tcpmem
  -min-pages N      only charges of so many pages or more
  -limited          only charges that failed or found a limit reached

When to stop (Ctrl-C and SIGTERM always do; a command gets them too):
  -for DURATION     after this time, as in 90s or 5m; a command goes on, and is
                    waited for
  -n ROWS           after this many rows; likewise

What to show:
  -stack            what each charge was for, by its kernel stack: CAUSE in -wide,
                    a line in -watch, plots in .html, and a table at the end
  -ustack           where in the program it was, by its user stack: for .pb.gz,
                    .folded, .html and .jsonl. Needs frame pointers
  -net              also what is given back, and what is charged whatever the
                    limit: at the end the net growth of each cgroup, beside that
                    of its memory.current
  -wide             for each charge also the thread, the kind of counter, what
                    came of it, the cgroup that pays, the level of the tree
                    with the least room, and how much; and reclaim. As wide as
                    the terminal or $COLUMNS, 120 at least
  -watch            for a terminal: a screen of the cgroups, how far each is from
                    its limit and when it will be there, and who charges it; ?
                    explains it. Elsewhere a line each second. A command has no
                    terminal beside the screen; what it prints comes afterwards
  -units UNITS      pages (default), bytes, or human: 3.9M, rounded down (default
                    for -watch)
  -time FORMAT      relative: milliseconds since the start (default),
                    clock: 15:04:05.000000, or date: with the date and zone

Where to (the table on stdout, if nothing else is asked for):
  -o FILE           repeatable; the ending says the form: .ctrace, a recording
                    for -r, .html, a report, .svg or .png, its main plot, .jsonl,
                    .csv, or .pftrace, for Perfetto; of stacks .pb.gz, for pprof,
                    or .folded, for flame graphs; - is stdout
  -format FORM      for other endings and for -: table (default for -), ctrace,
                    jsonl, csv, pftrace, html, svg, png, pb.gz, folded
  -force            overwrite files
  -rotate SIZE|DURATION
                    go on in another recording after so much, as in 100M, or 1h:
                    x-1.ctrace, x-2.ctrace, ..., after the last that is there
  -keep N           of these, keep the last N only

The kernel:
  -attach HOW       kprobe, fentry for kernels without kprobes, or auto: whichever
                    works. The default is kprobe, but fentry where there is such
                    for what is of -net alone
  -buffer SIZE      between kernel and chargetrace, as in 512K (default 2M);
                    rounded up to a power of two of pages
  -check            print what this kernel and this user offer, and what to do
                    about each lack; exit 0 if a trace would start

  -completion SHELL
                    print what completes all this in bash, zsh or fish
  -version          print the version
  -h                print this text

Data goes to stdout, everything else to stderr. Exit status: 0, 1 for an
error, 2 for wrong usage; or the command's, 128+N if signal N killed it, 126 if
it cannot be run, 127 if there is none.
`

// config is what the flags say.
type config struct {
	filter      stream.Filter
	comms       []string // the patterns of filter.Comms
	wide        bool
	watch       bool
	stack       bool
	ustack      bool
	net         bool
	duration    time.Duration // 0: no limit
	units       text.Units
	time        table.TimeFormat
	attach      capture.Attach
	bufferBytes int
	inputs      []string // recordings; none: the running kernel
	from, to    string
	tail        bool
	diff        string // another recording
	outputs     []output
	force       bool
	rotateBytes int64         // 0: never
	rotateAfter time.Duration // 0: never
	keep        int           // 0: all
	command     []string
	user        string // empty: as chargetrace, or who called sudo
	limits      cgroup.Limits
	check       bool
	completion  string // a shell
	version     bool
	help        bool
}

// parseFlags defines the flags in fs, and parses args.
func parseFlags(fs *flag.FlagSet, args []string) (*config, error) {
	cfg := &config{
		time:        table.Relative,
		bufferBytes: capture.DefaultBufferBytes,
	}
	fs.SetOutput(io.Discard)
	fs.Func("pid", "", func(s string) (err error) { cfg.filter.PIDs, err = appendPIDs(cfg.filter.PIDs, s); return })
	fs.BoolVar(&cfg.filter.Follow, "f", false, "")
	fs.Func("comm", "", func(s string) error { return cfg.addComm(s) })
	fs.Func("cgroup", "", func(s string) error { return cfg.addCgroup(s) })
	fs.Func("container", "", func(s string) error { return cfg.addContainer(s) })
	fs.Func("min-pages", "", func(s string) (err error) { cfg.filter.MinPages, err = parseCount(s); return })
	fs.Func("counter", "", func(s string) (err error) { cfg.filter.Kinds, err = event.ParseKinds(s); return })
	fs.BoolVar(&cfg.filter.OnlyLimited, "limited", false, "")
	fs.BoolVar(&cfg.wide, "wide", false, "")
	fs.BoolVar(&cfg.watch, "watch", false, "")
	fs.BoolVar(&cfg.stack, "stack", false, "")
	fs.BoolVar(&cfg.ustack, "ustack", false, "")
	fs.BoolVar(&cfg.net, "net", false, "")
	fs.Func("for", "", func(s string) (err error) { cfg.duration, err = parsePositiveDuration(s); return })
	fs.Func("n", "", func(s string) (err error) { cfg.filter.MaxCharges, err = parseCount(s); return })
	fs.Func("units", "", func(s string) (err error) { cfg.units, err = text.ParseUnits(s); return })
	fs.Func("time", "", func(s string) (err error) { cfg.time, err = table.ParseTimeFormat(s); return })
	fs.Func("attach", "", func(s string) (err error) { cfg.attach, err = capture.ParseAttach(s); return })
	fs.Func("buffer", "", func(s string) (err error) { cfg.bufferBytes, err = parseBuffer(s); return })
	var outputs []string
	var format string
	fs.Func("r", "", func(s string) error { cfg.inputs = append(cfg.inputs, s); return nil })
	fs.StringVar(&cfg.from, "from", "", "")
	fs.StringVar(&cfg.to, "to", "", "")
	fs.BoolVar(&cfg.tail, "follow", false, "")
	fs.StringVar(&cfg.diff, "diff", "", "")
	fs.Func("o", "", func(s string) error { outputs = append(outputs, s); return nil })
	fs.StringVar(&format, "format", "", "")
	fs.BoolVar(&cfg.force, "force", false, "")
	fs.Func("rotate", "", func(s string) error { return cfg.parseRotate(s) })
	fs.Func("keep", "", func(s string) error { n, err := parseCount(s); cfg.keep = int(min(n, 1<<30)); return err })
	fs.StringVar(&cfg.user, "user", "", "")
	fs.Func("memory", "", func(s string) (err error) { cfg.limits.MemoryBytes, err = parseSize(s); return })
	fs.Func("high", "", func(s string) (err error) { cfg.limits.HighBytes, err = parseSize(s); return })
	fs.Func("swap", "", func(s string) (err error) { cfg.limits.SwapBytes, err = parseSwap(s); return })
	fs.BoolVar(&cfg.check, "check", false, "")
	fs.Func("completion", "", func(s string) (err error) { cfg.completion, err = parseShell(s); return })
	fs.BoolVar(&cfg.version, "version", false, "")
	fs.BoolVar(&cfg.help, "h", false, "")
	fs.BoolVar(&cfg.help, "help", false, "")
	if err := fs.Parse(args); err != nil {
		return nil, usageErrorf("%w", err)
	}
	if err := cfg.parseCommand(args, fs.Args()); err != nil {
		return nil, err
	}
	if len(cfg.inputs) == 0 && (cfg.from != "" || cfg.to != "" || cfg.tail) {
		return nil, usageErrorf("-from, -to and -follow are for -r")
	}
	if (cfg.stack || cfg.ustack) && len(cfg.inputs) > 0 {
		return nil, usageErrorf("-stack and -ustack are for recording: what is played has its stacks or not")
	}
	if cfg.net && len(cfg.inputs) > 0 {
		return nil, usageErrorf("-net is for recording: what is played has what was given back or not")
	}
	if cfg.net && (cfg.filter.OnlyLimited || cfg.filter.MinPages > 0 || cfg.filter.MaxCharges > 0) {
		return nil, usageErrorf("-net adds up all charges, and -limited, -min-pages and -n leave some out")
	}
	stdins := 0
	for _, path := range append(slices.Clone(cfg.inputs), cfg.diff) {
		if path == "-" {
			stdins++
		}
	}
	if stdins > 1 {
		return nil, usageErrorf("stdin can be played once only")
	}
	if cfg.filter.Follow && len(cfg.filter.PIDs) == 0 && cfg.command == nil {
		return nil, usageErrorf("-f is for -pid")
	}
	switch {
	case !cfg.watch:
	case cfg.wide || cfg.diff != "" || slices.Contains(outputs, "-") || format != "" && len(outputs) == 0:
		return nil, usageErrorf("-watch takes the place of the table, and of any other output on stdout")
	default:
		cfg.units = cmp.Or(cfg.units, text.Human)
		if len(outputs) == 0 {
			return cfg, cfg.checkRotation() // no table
		}
	}
	cfg.units = cmp.Or(cfg.units, text.Pages)
	var err error
	if cfg.outputs, err = parseOutputs(outputs, format); err != nil {
		return nil, err
	}
	if err := cfg.checkRotation(); err != nil {
		return nil, err
	}
	return cfg, cfg.checkDiff()
}

// checkRotation says where nothing is there to rotate.
func (cfg *config) checkRotation() error {
	rotates := cfg.rotateBytes > 0 || cfg.rotateAfter > 0
	switch {
	case cfg.keep > 0 && !rotates:
		return usageErrorf("-keep is for -rotate")
	case rotates && !slices.ContainsFunc(cfg.outputs, func(o output) bool { return o.format == "ctrace" && o.path != "-" }):
		return usageErrorf("-rotate is for -o x.ctrace")
	}
	return nil
}

// parseCommand takes what is left of args as the command, if it stands after --.
func (cfg *config) parseCommand(args, left []string) error {
	separator := len(args) - len(left) - 1
	switch {
	case separator >= 0 && args[separator] == "--":
		if len(left) == 0 {
			return usageErrorf("there is no command after --")
		}
		cfg.command = left
	case len(left) > 0:
		return usageErrorf("unexpected argument %q: a command stands after --", left[0])
	}
	switch {
	case cfg.command == nil && (cfg.user != "" || cfg.limits != cgroup.Limits{}):
		return usageErrorf("-user, -memory, -swap and -high are for a command, which stands after --")
	case cfg.command != nil && len(cfg.filter.PIDs) > 0:
		return usageErrorf("-pid is for processes that run already, not for a command")
	case cfg.command != nil && len(cfg.inputs) > 0:
		return usageErrorf("-r plays a recording, and runs no command")
	case cfg.command != nil && cfg.check:
		return usageErrorf("-check runs no command")
	}
	return nil
}

func (cfg *config) addComm(pattern string) (err error) {
	cfg.comms = append(cfg.comms, pattern)
	cfg.filter.Comms, err = glob.Compile(cfg.comms...)
	if err != nil {
		return badValue("a pattern, as in 'java' or 'kworker/*': " + err.Error())
	}
	return nil
}

func (cfg *config) addCgroup(path string) error {
	if !strings.HasPrefix(path, "/") {
		return badValue("a path, as in /proc/PID/cgroup or /sys/fs/cgroup/system.slice")
	}
	cfg.filter.Cgroups = append(cfg.filter.Cgroups, cgroup.ParsePath(path))
	return nil
}

func (cfg *config) addContainer(id string) error {
	if id == "" || strings.Trim(id, "0123456789abcdef") != "" {
		return badValue("the id of a container or its beginning, in hexadecimal digits, as crictl ps or docker ps prints it")
	}
	cfg.filter.Containers = append(cfg.filter.Containers, id)
	return nil
}

// parseRotate parses a size or a time.
func (cfg *config) parseRotate(s string) error {
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		cfg.rotateAfter = d
		return nil
	}
	n, err := parseSize(s)
	if err != nil {
		return badValue("a size, such as 100M, or a time, such as 1h")
	}
	cfg.rotateBytes = n
	return nil
}

// A badValue is what a flag's value should have been; package flag puts the
// value and the flag before it.
type badValue string

func (e badValue) Error() string { return "want " + string(e) }

// appendPIDs appends the pids of a comma-separated list, each once.
func appendPIDs(pids []uint32, list string) ([]uint32, error) {
	for field := range strings.SplitSeq(list, ",") {
		// The kernel's pid_t is a positive int.
		pid, err := strconv.ParseInt(field, 10, 32)
		if err != nil || pid <= 0 {
			return nil, badValue("process ids, such as 4711 or 12,34")
		}
		if !slices.Contains(pids, uint32(pid)) {
			pids = append(pids, uint32(pid))
		}
	}
	return pids, nil
}

func parsePositiveDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, badValue("a time, such as 500ms, 90s or 5m")
	}
	return d, nil
}

func parseCount(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, badValue("a number, 1 or more")
	}
	return n, nil
}

func parseSwap(s string) (*int64, error) {
	if s == "0" {
		return new(int64), nil
	}
	n, err := parseSize(s)
	return &n, err
}

func parseBuffer(s string) (int, error) {
	n, err := parseSize(s)
	if err != nil {
		return 0, err
	}
	if n > capture.MaxBufferBytes {
		return 0, badValue("at most 2G")
	}
	return int(n), nil
}

// parseSize parses a size in bytes, such as 4096, 512K or 2MiB: as docker and
// kubectl, in powers of 1024.
func parseSize(s string) (int64, error) {
	number := strings.TrimRight(s, "KMGTkmgtiBb")
	shift, ok := map[string]uint{
		"": 0, "b": 0,
		"k": 10, "kb": 10, "kib": 10, "ki": 10,
		"m": 20, "mb": 20, "mib": 20, "mi": 20,
		"g": 30, "gb": 30, "gib": 30, "gi": 30,
		"t": 40, "tb": 40, "tib": 40, "ti": 40,
	}[strings.ToLower(s[len(number):])]
	n, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || n <= 0 || n > math.MaxInt64>>shift {
		return 0, badValue("a size, such as 4096, 512K or 2M")
	}
	return n << shift, nil
}
