package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// openTerminal makes a terminal of a size for a program, and its other end, the console.
// Both are closed after the test.
func openTerminal(t testing.TB, columns, rows uint16) (host *console, terminal *os.File) {
	t.Helper()
	file, terminal, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	host = &console{File: file, output: make(chan string, 1000)}
	host.resize(t, columns, rows)
	go host.read()
	t.Cleanup(func() {
		host.Close()
		terminal.Close()
	})
	return host, terminal
}

// console is the user's end of a terminal.
type console struct {
	*os.File
	output chan string
	shown  string
}

// read sends the terminal's output to c.output.
func (c *console) read() {
	defer close(c.output)
	for {
		var buf [4096]byte
		n, err := c.Read(buf[:])
		if err != nil {
			return
		}
		c.output <- string(buf[:n])
	}
}

// waitFor waits for a text in the output. It returns the output between the last call's
// text and this one.
func (c *console) waitFor(t testing.TB, what string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; c.next(t, deadline, what) {
		if i := strings.Index(c.shown, what); i >= 0 {
			before := c.shown[:i]
			c.shown = c.shown[i+len(what):]
			return before
		}
	}
}

// next waits for more output. what is part of its error.
func (c *console) next(t testing.TB, deadline time.Time, what string) {
	t.Helper()
	select {
	case s, ok := <-c.output:
		if c.shown += s; !ok {
			t.Fatalf("no %s: %q", what, c.shown)
		}
	case <-time.After(time.Until(deadline)):
		t.Fatalf("no %s yet: %q", what, c.shown)
	}
}

func (c *console) resize(t testing.TB, columns, rows uint16) {
	t.Helper()
	if err := pty.Setsize(c.File, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		t.Fatal(err)
	}
}
