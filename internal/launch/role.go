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

// roleVariable is in the environment of a child that has a [role].
const roleVariable = "CHARGETRACE_ROLE"

// role is what a child does in place of main.
type role struct {
	// Socket is the file descriptor of the child's end.
	Socket int
	// Reap has the parameters of a cgroupReaper. It is nil for execAs.
	Reap *cgroupReaper
	// ExecAs is the identity for execAs. A nil one is that of chargetrace.
	ExecAs *identity
}

// message is what a child sends on its socket, as JSON.
type message struct {
	Dir    string // of the cgroup, when the cgroupReaper has made it
	Killed int    // processes, when the cgroupReaper has removed the cgroup
	Error  *Error // nil: success
}

func send(socket io.Writer, m message) error { return json.NewEncoder(socket).Encode(m) }

// receive reads a message. It returns an error in it as its own.
func receive(socket io.Reader) (m message, err error) {
	err = json.NewDecoder(socket).Decode(&m)
	if err == nil && m.Error != nil {
		err = m.Error
	}
	return m, err
}

// startRole starts cmd, which is chargetrace, in a role. It returns chargetrace's end of the socket.
func startRole(cmd *exec.Cmd, r role) (*os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours := os.NewFile(uintptr(ends[0]), "socket")
	defer unix.Close(ends[1])
	// Keep its number. exec.Cmd.ExtraFiles would make it 3, in place of a file that the command
	// inherits under that number: make and shells pass such files on.
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

// PlayRole plays the role of a child that [Start] has started, and exits. In any other process it
// does nothing. main calls it first.
func PlayRole() {
	encoded, ok := os.LookupEnv(roleVariable)
	if !ok {
		return
	}
	os.Unsetenv(roleVariable)
	var r role
	if err := json.Unmarshal([]byte(encoded), &r); err != nil {
		fmt.Fprintf(os.Stderr, "chargetrace: %s is for its own use: %v\n", roleVariable, err)
		os.Exit(1)
	}
	unix.CloseOnExec(r.Socket)
	socket := os.NewFile(uintptr(r.Socket), "socket")
	var last message
	if r.Reap != nil {
		last = r.Reap.run(socket)
	} else {
		last.Error = execAs(r.ExecAs, socket, os.Args[1:])
	}
	if err := send(socket, last); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}
