//go:build linux

package guest

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// discard are flags that keep chargetrace's output away from stdout.
const discard = " -o /dev/null -format csv -force"

// cmdOf returns a command for argv.
func cmdOf(argv []string) *exec.Cmd { return exec.Command(argv[0], argv[1:]...) }

// nobody is an unprivileged user.
var nobody = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}

func TestLaunchStatus(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	startTracer(t, "", launching("", script("exit 0")...)...).status(t, 0)
	tr := startTracer(t, "", launching("", script("exit 3")...)...)
	tr.status(t, 3)
	if !summaryLine.MatchString(tr.stderr.String()) {
		t.Errorf("no summary: %s", tr.stderr)
	}

	dir := t.TempDir()
	for _, f := range []struct {
		name, content string
		mode          os.FileMode
	}{{"plain", "\x00garbage", 0o644}, {"garbage", "\x00garbage", 0o755}, {"script", "#!/nowhere/sh\n", 0o755}} {
		if err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.content), f.mode); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string) *exec.Cmd { return cmdOf(launching("-memory 50M", name)) }
	mustFail(t, run("missing"), 127, "chargetrace: cannot run missing: executable file not found in $PATH\nhint: ")
	mustFail(t, run(dir+"/missing"), 127, "/missing: no such file or directory\nhint: ")
	mustFail(t, run(dir+"/plain"), 126, "/plain: permission denied\nhint: ")
	mustFail(t, run(dir+"/garbage"), 126, "/garbage: exec format error\nhint: ")
	mustFail(t, run(dir+"/script"), 127, "/script: no such file or directory\nhint: ")
	checkRemoved(t, cgroupRoot)
}

// TestLaunchStdio checks that the command gets stdin, stdout and stderr, and that
// chargetrace does not end on a terminal's signals.
func TestLaunchStdio(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	cmd := cmdOf(launching("-memory 50M"+discard, script("echo cat talks >&2; echo cat runs; exec cat")...))
	stdout, stderr := newLineBuffer("cat runs\n"), newLineBuffer("")
	cmd.Stdout, cmd.Stderr = stdout, stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	<-stdout.found
	// A terminal would send them to the command too.
	for _, s := range []syscall.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGINT} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(stdin, "through\n"); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, stderr)
	}
	if got := stdout.String(); got != "cat runs\nthrough\n" {
		t.Errorf("stdout is %q", got)
	}
	if !strings.Contains(stderr.String(), "\ncat talks\n") {
		t.Errorf("stderr is %q", stderr)
	}
}

// TestLaunchInherits checks that the command inherits files, arguments and ignored signals,
// but no file or environment variable of chargetrace itself.
func TestLaunchInherits(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	argv := launching("-memory 50M"+discard, script(`
		for fd in /proc/$$/fd/*; do # and the directory, which is closed by then
			[ -L $fd ] && [ ${fd##*/} -gt 2 ] && echo ${fd##*/} $(readlink $fd)
		done
		printf '[%s]' "$@" "$CHARGETRACE_ROLE"
		grep SigIgn /proc/self/status`, "a b", "--", "-n")...)
	cmd := cmdOf(script(`trap '' HUP; exec "$@"`, argv...)) // like nohup(1)
	cmd.ExtraFiles = []*os.File{file}
	out, err := cmd.Output()
	if want := "3 " + file.Name() + "\n[a b][--][-n][]SigIgn:\t0000000000000001\n"; err != nil || string(out) != want {
		t.Errorf("%v, got %q, want %q", err, out, want)
	}
}

// who is a script that prints the identity of its process.
const who = `echo uid $(id -u) gid $(id -g) groups $(id -G) home $HOME user $USER logname $LOGNAME caps $(sed -n 's/^CapEff:\t0*//p' /proc/self/status)`

func TestLaunchIdentity(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	for name, content := range map[string]string{
		"/etc/passwd": "root:x:0:0::/root:\nsomeone:x:1000:1000::/home/someone:\nother:x:1001:1001::/home/other:\n",
		"/etc/group":  "root:x:0:\nsomeone:x:1000:\nother:x:1001:\nmore:x:2000:someone\n",
	} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(flags string, env ...string) *exec.Cmd {
		cmd := cmdOf(launching(flags+discard, script(who)...))
		cmd.Env = append([]string{"PATH=/usr/bin", "HOME=/root", "USER=root", "LOGNAME=root"}, env...)
		return cmd
	}
	sudo := []string{"SUDO_UID=1000", "SUDO_GID=1000", "SUDO_USER=someone"}
	const someone = "uid 1000 gid 1000 groups 1000 2000 home /home/someone user someone logname someone caps\n"
	const other = "uid 1001 gid 1001 groups 1001 home /home/other user other logname other caps\n"
	root, err := run("").Output()
	if err != nil || !bytes.HasPrefix(root, []byte("uid 0 gid 0 groups 0 home /root user root logname root caps ")) {
		t.Fatalf("without sudo: %v, %s", err, root)
	}
	for _, tc := range []struct {
		flags string
		env   []string
		want  string
	}{
		{"", sudo, someone},
		{"-memory 50M", sudo, someone},
		{"-user other", sudo, other},
		{"-user 1001", nil, other},
		{"-user root", sudo, string(root)},
		{"", []string{"SUDO_UID=0", "SUDO_GID=0"}, string(root)},
		{"", []string{"SUDO_UID=77", "SUDO_GID=78", "SUDO_USER=far"}, "uid 77 gid 78 groups 78 home / user far logname far caps\n"},
	} {
		out, err := run(tc.flags, tc.env...).Output()
		if err != nil || string(out) != tc.want {
			t.Errorf("%q %q: %v\ngot  %q\nwant %q", tc.flags, tc.env, err, out, tc.want)
		}
	}
	mustFail(t, run("-user nobody-here"), 1, "there is no user nobody-here\nhint: ")
	mustFail(t, run("-user 4711"), 1, "there is no user 4711\nhint: ")
	// The user cannot run root's file of mode 0700.
	hidden := filepath.Join(t.TempDir(), "hidden")
	if err := os.WriteFile(hidden, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	mustFail(t, cmdOf(launching("-user other", hidden)), 126, "permission denied\nhint: ")
	cmd := run("-user other")
	cmd.SysProcAttr = nobody
	mustFail(t, cmd, 1, "only root can run a command as another user\nhint: ")
}

// printLimits is a script that prints files of its cgroup.
const printLimits = ownCgroup + `cd $own; for file in "$@"; do echo $file $(cat $file); done`

func TestLaunchLimits(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	for flags, want := range map[string]string{
		"-memory 64M -high 32M -swap 0": "memory.max 67108864\nmemory.high 33554432\nmemory.swap.max 0\n",
		"-swap 1M":                      "memory.max max\nmemory.high max\nmemory.swap.max 1048576\n",
	} {
		tr := startTracer(t, "", launching(flags+discard, script(printLimits, "memory.max", "memory.high", "memory.swap.max")...)...)
		if got := tr.status(t, 0); got != want {
			t.Errorf("%s: got %q, want %q", flags, got, want)
		}
	}

	cmd := cmdOf(launching("-memory 64M", script("exit 0")...))
	cmd.SysProcAttr = nobody
	mustFail(t, cmd, 1, "chargetrace: cannot make a cgroup: mkdir /sys/fs/cgroup/chargetrace-", ": permission denied\nhint: run it with sudo\n")
	if err := unix.Mount("", cgroupRoot, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	mustFail(t, cmdOf(launching("-memory 64M", script("exit 0")...)), 1, ": read-only file system\nhint: in a container, ")
}

func TestLaunchLimitsV1(t *testing.T) {
	if !Enter(t, Exact.On(V1...)) {
		return
	}
	mountV1(t)
	argv := script(printLimits, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
	tr := startTracer(t, "", launching("-memory 64M -swap 1M"+discard, argv...)...)
	const want = "memory.limit_in_bytes 67108864\nmemory.memsw.limit_in_bytes 68157440\n"
	if got := tr.status(t, 0); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
