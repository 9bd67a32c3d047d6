//go:build linux

package launch

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// roleVariable is set in the environment of a child with a [role].
const roleVariable = "CHARGETRACE_ROLE"

// role describes the task of a child.
type role struct {
	// Socket is the file descriptor of the child's end.
	Socket int
	// Reap is the task of a cgroupReaper, and Restore that of a limitRestorer. Both are nil for execAs.
	Reap    *cgroupReaper
	Restore *limitRestorer
	// ExecAs is the identity for execAs. A nil one is chargetrace's own.
	ExecAs *identity
}

// message is a message from a child on its socket, as JSON.
type message struct {
	Dir    string // the directory of the cgroup that the cgroupReaper made
	Killed int    // the number of processes that the cgroupReaper killed
	Error  *Error // nil: success
}

func send(socket io.Writer, m message) error { return json.NewEncoder(socket).Encode(m) }

// receive reads a message. It returns the message's error too.
func receive(socket io.Reader) (m message, err error) {
	err = json.NewDecoder(socket).Decode(&m)
	if err == nil && m.Error != nil {
		err = m.Error
	}
	return m, err
}

// startRole starts chargetrace, as cmd, in a role. It returns this end of the socket.
func startRole(cmd *exec.Cmd, r role) (*os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours := os.NewFile(uintptr(ends[0]), "socket")
	defer unix.Close(ends[1])
	// Keep the descriptor's number. exec.Cmd.ExtraFiles would change it to 3, which may be a file that
	// the command inherits from make or a shell.
	if _, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETFD, 0); err != nil {
		ours.Close()
		return nil, err
	}
	r.Socket = ends[1]
	encoded, err := json.Marshal(r)
	if err == nil {
		cmd.Env = append(cmd.Environ(), roleVariable+"="+string(encoded))
		err = cmd.Start()
	}
	if err != nil {
		ours.Close()
		return nil, err
	}
	return ours, nil
}

// PlayRole plays the role of a child of [Start] or [StartGrace], and exits. In any other process it does nothing.
// main calls it first.
func PlayRole() {
	encoded, ok := os.LookupEnv(roleVariable)
	if !ok {
		return
	}
	os.Unsetenv(roleVariable)
	var r role
	if err := json.Unmarshal([]byte(encoded), &r); err != nil {
		fmt.Fprintf(os.Stderr, "chargetrace: %s is reserved for chargetrace: %v\n", roleVariable, err)
		os.Exit(1)
	}
	unix.CloseOnExec(r.Socket)
	socket := os.NewFile(uintptr(r.Socket), "socket")
	var last message
	switch {
	case r.Reap != nil:
		last = r.Reap.run(socket)
	case r.Restore != nil:
		r.Restore.run(socket)
		os.Exit(0) // chargetrace does not wait for a message
	default:
		last.Error = execAs(r.ExecAs, socket, os.Args[1:])
	}
	if err := send(socket, last); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}
