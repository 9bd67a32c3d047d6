package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestThread passes a thread's id as a pid.
func TestThread(t *testing.T) {
	tid := make(chan int)
	done := make(chan struct{})
	defer close(done)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		<-done
	}()
	thread := <-tid
	if thread == os.Getpid() { // the first thread: this test runs on another one
		runtime.LockOSThread()
		thread = unix.Gettid()
	}
	_, err := openProcesses([]uint32{uint32(thread)})
	var hinted *hintedError
	if !errors.As(err, &hinted) || err.Error() != fmt.Sprintf("%d is not a process, but a thread of process %d", thread, os.Getpid()) {
		t.Errorf("%v", err)
	}
}
