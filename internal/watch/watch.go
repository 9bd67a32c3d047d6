// Package watch shows a running trace: on a terminal a screen of the cgroups, how far
// each is from its nearest limit and when it will reach it; elsewhere a line each
// second. It is a Sink and knows neither the source of the events nor the files of
// cgroups: [Options.Memory] reads these.
//
// The screen is a function of the events, the ticks of a clock and the keys only.
// Package bubbletea draws it.
package watch

import (
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
)

// Options configure a [Watch].
type Options struct {
	// Keys is the terminal to read keys from; nil: print lines instead of a screen.
	Keys io.Reader
	// ASCII restricts the screen to ASCII characters.
	ASCII bool
	// Units is the initial unit of amounts; a key changes it.
	Units text.Units
	// Now reads the clock of [event.Event.BootNanos]. nil plays a recording: on a
	// screen in real time, without long pauses.
	Now func() uint64
	// Memory reads the usage and the limits of a cgroup. ok is false if the cgroup does not
	// exist or cannot have a limit. nil: a recording.
	Memory func(id event.CgroupID, path string) (m cgroup.Memory, ok bool)
	// Interrupt is called when a key ends the trace, Stop when the screen fails or
	// the lines have no reader.
	Interrupt, Stop func()
	// Stderr gets the held output once the screen is left; see [Watch.HoldWriter].
	Stderr io.Writer
}

// Watch is a [stream.Sink].
type Watch struct {
	o       Options
	out     io.Writer
	program *tea.Program  // nil: lines
	left    chan struct{} // closed when the screen is left
	leftErr error
	pressed chan struct{} // gets each key press
	ticked  atomic.Bool   // a tick is on its way to the screen
	closing chan struct{}
	ticking sync.WaitGroup

	// What follows needs the lock of the World. Write is called with it.
	state    *state
	keys     keys
	screen   screen
	held     []byte // the output of LogWriter and HoldWriter
	position uint64 // of a recording, in BootNanos
	headed   bool   // the head of the lines is printed
	closed   bool
	err      error // of printing
}

// New returns a Watch that shows the events of a source on out.
func New(out io.Writer, v *verdict.Verdict, o Options) *Watch {
	w := &Watch{
		o: o, out: out, state: newState(v), position: min(v.Info.StartBootNanos, maxBootNanos),
		keys:   keys{units: o.Units},
		screen: screen{width: 80, height: 24, ascii: o.ASCII, shortens: o.Keys != nil},
		left:   make(chan struct{}), pressed: make(chan struct{}, 1), closing: make(chan struct{}),
	}
	if o.Keys != nil {
		// 10 frames a second are plenty: the screen changes once a second.
		w.program = tea.NewProgram(model{w}, tea.WithInput(o.Keys), tea.WithOutput(out), tea.WithFPS(10), tea.WithoutSignalHandler())
		go func() {
			_, w.leftErr = w.program.Run()
			close(w.left)
			if w.leftErr != nil {
				o.Stop()
			}
		}()
	} else {
		close(w.left)
	}
	if o.Now != nil {
		w.ticking.Go(w.tickLive)
	}
	return w
}

// maxBootNanos bounds the times of a hostile recording, so that sums do not overflow. It
// is more than a century.
const maxBootNanos = 1 << 62

// tickLive reads the cgroups' files and ticks, once a second.
func (w *Watch) tickLive() {
	defer w.LeaveOnPanic()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			w.readUsage()
			w.locked(func() { w.tick(w.o.Now()) })
		case <-w.closing:
			return
		}
	}
}

func (w *Watch) readUsage() {
	if w.o.Memory == nil {
		return
	}
	var paths map[event.CgroupID]string
	w.locked(func() { paths = w.state.toRead() })
	readings := make(map[event.CgroupID]cgroup.Memory)
	for id, path := range paths {
		if m, ok := w.o.Memory(id, path); ok {
			readings[id] = m
		}
	}
	w.locked(func() { w.state.read(readings) })
}

// locked calls f with the lock locked. It unlocks even if f panics: leaving the screen needs
// the lock.
func (w *Watch) locked(f func()) {
	w.state.Lock()
	defer w.state.Unlock()
	f()
}

// tick takes a sample and shows it. It needs the lock.
func (w *Watch) tick(bootNanos uint64) {
	if w.keys.paused {
		return
	}
	w.state.tick(bootNanos)
	if w.program == nil {
		w.printLine()
		return
	}
	// Send blocks while the terminal does.
	if w.ticked.CompareAndSwap(false, true) {
		go w.program.Send(ticked{})
	}
}

// Write implements [stream.Sink].
func (w *Watch) Write(batch []event.Event) error {
	for i := range batch {
		before := w.state.logged
		w.state.add(&batch[i], w.state.Usages(i))
		if w.program != nil {
			continue
		}
		for _, x := range w.state.log[len(w.state.log)-(w.state.logged-before):] {
			w.print("--- " + ansi.Strip(w.painter().entry(x)))
		}
	}
	return w.err
}

func (w *Watch) painter() *painter { return &painter{state: w.state, keys: &w.keys, screen: w.screen} }

// Leave restores the terminal. It may be called at any time, from any goroutine, and
// repeatedly.
func (w *Watch) Leave() {
	if w.program != nil {
		w.program.Quit()
	}
	<-w.left
}

// LeaveOnPanic, deferred, restores the terminal before a panic goes on.
func (w *Watch) LeaveOnPanic() {
	if r := recover(); r != nil {
		w.Leave()
		panic(r)
	}
}

// Close takes a last sample and leaves the screen; a recording stays until a key ends
// it. The last screen is printed to the terminal.
func (w *Watch) Close(stream.Counts) error {
	close(w.closing)
	w.ticking.Wait()
	w.state.Lock()
	w.keys.paused = false
	now := w.position
	if w.o.Now != nil {
		now = w.o.Now()
	}
	if now > w.state.lastTick {
		w.tick(now)
	}
	w.state.Unlock()
	if w.o.Now != nil {
		w.Leave()
	}
	<-w.left

	w.state.Lock()
	defer w.state.Unlock()
	if w.program != nil {
		w.keys.help, w.keys.filtering = false, false
		lines := strings.Split(ansi.Strip(w.state.view(&w.keys, w.screen)), "\n")
		for _, line := range lines[:len(lines)-1] {
			w.print(strings.TrimRight(line, " "))
		}
	}
	if w.o.Stderr != nil {
		_, err := w.o.Stderr.Write(w.held)
		w.err = errors.Join(w.err, err)
	}
	w.closed = true
	return errors.Join(w.leftErr, w.err)
}
