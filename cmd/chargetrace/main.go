// Chargetrace shows why a cgroup runs out of memory. For each charge that the kernel tries,
// it prints the process, the pages requested, the pages in use and the limit.
//
// The files: flags.go and values.go parse the command line, usage.go is -h; session.go is a
// run, from a source (live_linux.go or replay.go) to the outputs (formats.go, output.go) and
// the screen (watch.go); diff.go compares recordings; command_linux.go runs a command;
// check_linux.go is -check; errors.go prints errors with hints.
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
	"strconv"
	"syscall"

	"github.com/charmbracelet/x/term"
)

func main() {
	playRole()
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole command. It returns the exit status: that of the launched command, 1 for
// an error, 2 for wrong usage.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	// Turn SIGPIPE into an error, so that the outputs are closed properly if a pipe's
	// reader is gone.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	status, err := dispatch(args, stdin, stdout, stderr)
	if err == nil || isBrokenPipe(err) {
		return status
	}
	printError(stderr, err)
	if errors.As(err, new(usageError)) {
		return 2
	}
	return cmp.Or(status, 1)
}

// dispatch runs the action that args select. status is that of a launched command.
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

// columns returns the width of the output: COLUMNS, as with ps(1), or the width of the
// terminal w, or 0.
func columns(w io.Writer) int {
	if n, err := strconv.ParseUint(os.Getenv("COLUMNS"), 10, 16); err == nil {
		return int(n)
	}
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(f.Fd())
	if err != nil {
		return 0
	}
	return width
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
