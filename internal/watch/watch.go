// Package watch shows a trace while it goes on: on a terminal a screen of the
// cgroups, how far each is from the limit that it will meet first and when that
// will be, elsewhere a line each second. It is a Sink that knows neither where
// events come from nor the files of cgroups: what these say is handed in.
//
// What is on the screen is a function of the events, the ticks of a clock and the
// keys that were pressed, and of nothing else; package bubbletea brings it to the
// terminal.
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

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
)

// Options say what a [Watch] shows, and of what.
type Options struct {
	// Keys is the terminal that keys come from where there is a screen; nil: there
	// are lines.
	Keys io.Reader
	// ASCII is for terminals that show no other characters.
	ASCII bool
	// Units is how amounts are written; a key changes it.
	Units text.Units
	// Now returns the time on the clock of [event.Event.BootNanos]; nil is for a
	// recording, whose events tell the time. On a screen it is played as fast as
	// it was made, but for times in which nothing happens.
	Now func() uint64
	// Usage returns what a cgroup holds now, and its limit, in pages; ok is false
	// where there is no such cgroup, or no limit on it can be. nil is for a
	// recording.
	Usage func(id event.CgroupID, path string) (usagePages int64, maxPages uint64, ok bool)
	// Interrupt is called when a key asks for the end of the trace, and Stop when
	// the screen fails, or nobody reads the lines.
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
	pressed chan struct{} // a key was
	ticked  atomic.Bool   // the screen is being told so
	closing chan struct{}
	ticking sync.WaitGroup

	mu     sync.Mutex
	state  *state
	keys   keys
	screen screen
	held   []byte // the output of LogWriter and HoldWriter
	// position is up to where a recording was played.
	position uint64
	headed   bool // there is a line above the lines
	closed   bool
	err      error // of a line
}

// New returns a Watch that shows on out the events of a source with that header.
func New(out io.Writer, header stream.Header, o Options) *Watch {
	header.StartBootNanos = min(header.StartBootNanos, maxBootNanos)
	w := &Watch{
		o: o, out: out, state: newState(header), position: header.StartBootNanos,
		keys:   keys{units: o.Units},
		screen: screen{width: 80, height: 24, ascii: o.ASCII},
		left:   make(chan struct{}), pressed: make(chan struct{}, 1), closing: make(chan struct{}),
	}
	if o.Keys != nil {
		// It changes once a second.
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

// maxBootNanos is a century or more, beyond which the times of a recording are
// nonsense that must not overflow.
const maxBootNanos = 1 << 62

// tickLive ticks once a second, with what the files of the cgroups say.
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
	if w.o.Usage == nil {
		return
	}
	var paths map[event.CgroupID]string
	w.locked(func() { paths = w.state.toRead() })
	readings := make(map[event.CgroupID]reading)
	for id, path := range paths {
		if usage, limit, ok := w.o.Usage(id, path); ok {
			readings[id] = reading{usage, limit}
		}
	}
	w.locked(func() { w.state.read(readings) })
}

// locked calls f with w.mu locked, and unlocks it even if f panics: the screen
// needs it to be left.
func (w *Watch) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// tick takes a sample and shows it. w.mu is locked.
func (w *Watch) tick(bootNanos uint64) {
	if w.keys.paused {
		return
	}
	w.state.tick(bootNanos)
	if w.program == nil {
		w.printLine()
		return
	}
	// A terminal that takes nothing keeps it on its way.
	if w.ticked.CompareAndSwap(false, true) {
		go w.program.Send(ticked{})
	}
}

// Write takes the events of a batch. Of a recording it first lets the time go by
// until they happened.
func (w *Watch) Write(batch []event.Event) error {
	if w.o.Now != nil {
		return w.add(batch)
	}
	for i := range batch {
		if !batch[i].Type.IsName() {
			w.playUntil(batch[i].BootNanos)
		}
		if err := w.add(batch[i : i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (w *Watch) add(batch []event.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.state.logged
	w.state.add(batch)
	if w.program == nil {
		log := w.state.log
		for _, x := range log[max(0, len(log)-(w.state.logged-before)):] {
			w.print("--- " + ansi.Strip(w.painter().entry(x)))
		}
	}
	return w.err
}

func (w *Watch) painter() *painter { return &painter{state: w.state, keys: &w.keys, screen: w.screen} }

// playUntil ticks up to a time, and on a screen waits for it to come. It returns
// at once when the screen is left.
func (w *Watch) playUntil(bootNanos uint64) {
	bootNanos = min(bootNanos, maxBootNanos)
	last, paused := time.Now(), false
	for {
		var position uint64
		var wait time.Duration
		w.locked(func() {
			now := time.Now()
			if !paused {
				w.position += uint64(now.Sub(last))
			}
			last, paused = now, w.keys.paused
			if w.program == nil || w.hasLeft() {
				w.position = max(w.position, bootNanos)
			}
			// Time in which nothing happens is skipped.
			if idle := uint64(maxIdle); bootNanos > w.position+idle {
				w.position = bootNanos - idle
			}
			// The graph goes back no further.
			if span := uint64(historyTicks * interval); w.position > w.state.lastTick+span {
				w.state.lastTick = w.position - span
			}
			for next := w.state.lastTick + uint64(interval); next <= w.position; next += uint64(interval) {
				w.tick(next)
			}
			position = w.position
			wait = time.Duration(min(bootNanos, w.state.lastTick+uint64(interval)) - position)
		})
		switch {
		case position >= bootNanos:
			return
		case paused:
			wait = time.Hour
		}
		select {
		case <-time.After(wait):
		case <-w.pressed:
		case <-w.left:
		}
	}
}

// hasLeft reports whether the screen is left.
func (w *Watch) hasLeft() bool {
	select {
	case <-w.left:
		return true
	default:
		return false
	}
}

// maxIdle is how long a screen waits for the next event of a recording.
const maxIdle = 3 * time.Second

// Leave gives the terminal back, as it was. It may be called at any time, from
// any goroutine, and repeatedly.
func (w *Watch) Leave() {
	if w.program != nil {
		w.program.Quit()
	}
	<-w.left
}

// LeaveOnPanic is to be deferred: it gives the terminal back before a panic goes
// on.
func (w *Watch) LeaveOnPanic() {
	if r := recover(); r != nil {
		w.Leave()
		panic(r)
	}
}

// Close takes a last sample. A recording stays on the screen until a key ends it;
// what was on the screen at the end is printed below what was there before.
func (w *Watch) Close() error {
	close(w.closing)
	w.ticking.Wait()
	w.mu.Lock()
	w.keys.paused = false
	now := w.position
	if w.o.Now != nil {
		now = w.o.Now()
	}
	if now > w.state.lastTick {
		w.tick(now)
	}
	w.mu.Unlock()
	if w.o.Now != nil {
		w.Leave()
	}
	<-w.left

	w.mu.Lock()
	defer w.mu.Unlock()
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
