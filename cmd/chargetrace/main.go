// Chargetrace shows why a cgroup runs out of memory: each time the kernel asks
// whether some pages still fit under a limit, it prints who asked, for how many
// pages, how many are charged and what the limit is.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"chargetrace/internal/capture"
	"chargetrace/internal/launch"
)

func main() {
	launch.PlayRole()
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
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", hint)
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
	case cfg.play.diff != "":
		err = diff(cfg, stdin, stdout)
	case len(cfg.play.paths) > 0:
		err = replay(cfg, stdin, stdout, stderr)
	case len(cfg.child.argv) > 0:
		return runCommand(cfg, args, stdin, stdout, stderr)
	default:
		err = live(cfg, args, nil, stdout, stderr)
	}
	return 0, err
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
