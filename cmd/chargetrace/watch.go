package main

import (
	"cmp"
	"io"
	"os"
	"strings"
	"sync/atomic"

	"github.com/charmbracelet/x/term"

	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
	"chargetrace/internal/watch"
)

// hasScreen reports whether -watch shows a screen on a terminal.
func (cfg *config) hasScreen(stdout io.Writer) bool {
	kind := os.Getenv("TERM")
	return cfg.view.watch && isTerminal(stdout) && kind != "" && kind != "dumb"
}

func isTerminal(x any) bool {
	f, ok := x.(*os.File)
	return ok && term.IsTerminal(f.Fd())
}

// newWatch returns the sink of -watch, which shows the events of a source.
func (cfg *config) newWatch(src source, stdout, stderr io.Writer, v *verdict.Verdict, interrupt, stop func()) (*watch.Watch, error) {
	o := watch.Options{ASCII: !isUTF8(), Units: cmp.Or(cfg.view.format.Units, text.Human), Stderr: stderr, Interrupt: interrupt, Stop: stop}
	if cfg.hasScreen(stdout) {
		o.Keys = os.Stdin
		if !isTerminal(os.Stdin) { // stdin may be a recording
			o.Keys = stdout.(*os.File)
		}
	}
	if err := src.completeScreen(&o); err != nil {
		return nil, err
	}
	return watch.New(stdout, v, o), nil
}

// isUTF8 reports whether the locale uses UTF-8; see locale(7).
func isUTF8() bool {
	locale := strings.ToLower(cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG")))
	return strings.HasSuffix(locale, "utf-8") || strings.HasSuffix(locale, "utf8")
}

// lateWriter is a Writer whose destination is set after its creation.
type lateWriter struct{ to atomic.Pointer[io.Writer] }

func (w *lateWriter) set(to io.Writer) { w.to.Store(&to) }

func (w *lateWriter) Write(p []byte) (int, error) { return (*w.to.Load()).Write(p) }
