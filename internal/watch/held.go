package watch

import (
	"bytes"
	"io"

	"chargetrace/internal/event"
)

// LogWriter returns a writer for messages: on a screen they become lines of its log,
// and are held as by HoldWriter.
func (w *Watch) LogWriter() io.Writer { return &heldWriter{w, true} }

// HoldWriter returns a writer that holds its output until the screen is left: it would
// overwrite the screen. At least the last 512 KiB of both writers are kept.
func (w *Watch) HoldWriter() io.Writer { return &heldWriter{w, false} }

type heldWriter struct {
	*Watch
	log bool
}

const maxHeld = 1 << 20

func (h *heldWriter) Write(p []byte) (int, error) {
	h.state.Lock()
	defer h.state.Unlock()
	if h.program == nil || h.closed {
		return h.o.Stderr.Write(p)
	}
	if len(h.held) > maxHeld {
		h.held = append([]byte("[cut]\n"), h.held[len(h.held)-maxHeld/2:]...)
	}
	h.held = append(h.held, p...)
	if !h.log {
		return len(p), nil
	}
	now := h.position
	if h.o.Now != nil {
		now = h.o.Now()
	}
	for line := range bytes.Lines(p) {
		h.state.append(&entry{bootNanos: now, note: event.Printable(bytes.TrimRight(line, "\r\n"))})
	}
	return len(p), nil
}
