package main

import (
	"cmp"
	"io"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"chargetrace/internal/capture"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/watch"
)

// hasScreen reports whether -watch has a terminal to itself.
func (cfg *config) hasScreen(stdout io.Writer) bool {
	term := os.Getenv("TERM")
	return cfg.view.watch && isTerminal(stdout) && term != "" && term != "dumb"
}

func isTerminal(x any) bool {
	f, ok := x.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// newWatch returns the sink of -watch. A recording has neither a clock nor files.
func (cfg *config) newWatch(stdout, stderr io.Writer, info stream.Info, live bool, interrupt, stop func()) (*watch.Watch, error) {
	o := watch.Options{ASCII: !isUTF8(), Units: cfg.view.units, Stderr: stderr, Interrupt: interrupt, Stop: stop}
	if cfg.hasScreen(stdout) {
		o.Keys = os.Stdin
		if !isTerminal(os.Stdin) { // a recording, perhaps
			o.Keys = stdout.(*os.File)
		}
	}
	if live {
		trees, err := cgroup.Trees()
		if err != nil {
			return nil, err
		}
		o.Now = capture.BootNanos
		o.Usage = func(id event.CgroupID, path string) (int64, uint64, bool) { return cgroup.Usage(trees, id, path) }
	}
	return watch.New(stdout, info, o), nil
}

// isUTF8 reports what the locale says of the terminal, see locale(7).
func isUTF8() bool {
	locale := strings.ToLower(cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG")))
	return strings.HasSuffix(locale, "utf-8") || strings.HasSuffix(locale, "utf8")
}

// lateWriter writes to what it is later told to.
type lateWriter struct{ to atomic.Pointer[io.Writer] }

func (w *lateWriter) set(to io.Writer) { w.to.Store(&to) }

func (w *lateWriter) Write(p []byte) (int, error) { return (*w.to.Load()).Write(p) }
