//go:build linux

// Leak allocates memory until it is killed. At SIGUSR1 it writes its heap profile to the file in
// its argument. It begins after a line on stdin.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
	"time"
)

const (
	pieceBytes = 64 << 10
	pause      = time.Millisecond
)

func main() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	go func() {
		for range signals {
			if err := writeProfile(os.Args[1]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}()
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	leak()
}

// pieces is what leaks.
var pieces [][]byte

func leak() {
	for {
		piece := make([]byte, pieceBytes)
		for i := 0; i < len(piece); i += 4096 {
			piece[i] = 1
		}
		pieces = append(pieces, piece)
		time.Sleep(pause)
	}
}

// writeProfile gives the file its name when it is whole.
func writeProfile(name string) error {
	f, err := os.Create(name + ".part")
	if err != nil {
		return err
	}
	if err := pprof.WriteHeapProfile(f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(name+".part", name)
}
