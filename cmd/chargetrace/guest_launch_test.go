//go:build guest

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// command is what chargetrace runs in these tests: the executable of the tests,
// with the argument command before these.
func command(name string, args []string) error {
	number := func() int {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			panic(err)
		}
		return n
	}
	switch name {
	case "exit": // N
		os.Exit(number())
	case "touch": // N: touch so many MiB
		for memory := mmap(number() << 20); len(memory) > 0; memory = memory[pageSize:] {
			memory[0] = 1
		}
	case "hold": // say so, and wait for a signal
		fmt.Printf("held %d\n", os.Getpid())
		for { // the Go runtime's own signals end a pause too
			unix.Pause()
		}
	case "stubborn": // the same, but not for SIGTERM
		signal.Ignore(unix.SIGTERM)
		return command("hold", nil)
	case "leave": // N [hold]: leave so many of these behind
		for range number() {
			child := exec.Command("/init", "command", "stubborn")
			child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			stdout, err := child.StdoutPipe()
			if err != nil {
				return err
			}
			if err := child.Start(); err != nil {
				return err
			}
			if _, err := io.CopyN(os.Stdout, stdout, int64(len(fmt.Sprintf("held %d\n", child.Process.Pid)))); err != nil {
				return err
			}
		}
		if len(args) > 1 {
			return command(args[1], nil)
		}
	case "nest": // leave one behind in a cgroup below its own
		inner := filepath.Join(ownCgroup(), "a", "b")
		if err := os.MkdirAll(inner, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(inner, "cgroup.procs"), []byte("0"), 0); err != nil {
			return err
		}
		return command("leave", []string{"1"})
	case "cat":
		fmt.Fprintln(os.Stderr, "cat talks")
		fmt.Println("cat runs")
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "who":
		groups, err := os.Getgroups()
		if err != nil {
			return err
		}
		slices.Sort(groups)
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return err
		}
		caps := regexp.MustCompile(`\nCapEff:\t0*(.*)\n`).FindSubmatch(status)[1]
		fmt.Printf("uid %d gid %d groups %v home %s user %s logname %s caps %q\n",
			os.Getuid(), os.Getgid(), groups, os.Getenv("HOME"), os.Getenv("USER"), os.Getenv("LOGNAME"), caps)
	case "inherited": // what it has inherited
		for fd := 3; fd < 100; fd++ {
			// Go's runtime has its cgroup's cpu.max open, and its poller.
			target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			if err == nil && !strings.HasPrefix(target, "anon_inode:") && filepath.Base(target) != "cpu.max" {
				fmt.Println(fd, target)
			}
		}
		fmt.Printf("%q %q SIGHUP ignored %v SIGTERM ignored %v\n",
			args, os.Getenv(roleVariable), signal.Ignored(unix.SIGHUP), signal.Ignored(unix.SIGTERM))
	case "limits": // FILE ...: what these hold, in its own cgroup
		for _, file := range args {
			content, err := os.ReadFile(filepath.Join(ownCgroup(), file))
			if err != nil {
				return err
			}
			fmt.Printf("%s %s", file, content)
		}
	default:
		return fmt.Errorf("unknown command %q", name)
	}
	return nil
}

// ownCgroup is the directory of this process's cgroup.
func ownCgroup() string {
	content, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		panic(err)
	}
	if m := regexp.MustCompile(`(?m)^\d+:memory:(.*)$`).FindSubmatch(content); m != nil {
		return v1Root + string(m[1])
	}
	return cgroupRoot + string(regexp.MustCompile(`(?m)^0::(.*)$`).FindSubmatch(content)[1])
}

// launching returns the arguments that make chargetrace run a command.
func launching(flags string, command ...string) []string {
	return append(append([]string{"/usr/bin/chargetrace"}, strings.Fields(flags)...), append([]string{"--", "/init", "command"}, command...)...)
}

// status waits for the end of chargetrace, which must exit with that, and returns
// what it and its command printed on stdout.
func (tr *tracer) status(t *testing.T, want int) string {
	t.Helper()
	tr.Cmd.Wait()
	if got := tr.ProcessState.ExitCode(); got != want {
		t.Errorf("%s: exit status %d, want %d: %s", tr.Args, got, want, tr.stderr)
	}
	return tr.output(t)
}

// output is what it and its command have printed on stdout.
func (tr *tracer) output(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(tr.stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// held waits until so many processes have said that they are held, and returns
// handles of them.
func (tr *tracer) held(t *testing.T, n int) *processes {
	t.Helper()
	line := regexp.MustCompile(`(?m)^held (\d+)$`)
	var found [][]string
	waitForWrite(t, tr.stdout.Name(), func() bool {
		found = line.FindAllStringSubmatch(tr.output(t), -1)
		return len(found) == n
	})
	var pids []int
	for _, m := range found {
		pid, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	ps, err := openProcesses(pids)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ps.close)
	return ps
}

// children returns handles of the processes that chargetrace has started.
func (tr *tracer) children(t *testing.T) *processes {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", tr.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for field := range strings.FieldsSeq(string(content)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	ps, err := openProcesses(pids)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ps.close)
	return ps
}

// checkExited holds that the processes have exited.
func (ps *processes) checkExited(t *testing.T) {
	t.Helper()
	if n, err := unix.Poll(slices.Clone(ps.fds), 0); n != len(ps.fds) || err != nil {
		t.Errorf("%d of %d processes have exited, %v", n, len(ps.fds), err)
	}
}

// group is the cgroup of the command.
func (tr *tracer) group(root string) controlGroup {
	return controlGroup(fmt.Sprintf("%s/chargetrace-%d", root, tr.Process.Pid))
}

// checkRemoved holds that no cgroup of a command is left.
func checkRemoved(t *testing.T, root string) {
	t.Helper()
	if left, err := filepath.Glob(root + "/chargetrace-*"); len(left) > 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestLaunchOOM(t *testing.T)   { launchOOM(t, cgroupRoot) }
func TestLaunchOOMV1(t *testing.T) { launchOOM(t, mountV1(t)) }

// launchOOM is the article's experiment, in one command.
func launchOOM(t *testing.T, root string) {
	tr := startTracer(t, "", launching("-memory 10M", "touch", "20")...)
	out := parseTable(t, tr.status(t, 128+int(unix.SIGKILL)))
	if len(out.rows) < 30 || len(out.lost) > 0 {
		t.Fatalf("%d rows, lost %v", len(out.rows), out.lost)
	}
	pid := out.rows[0].pid
	for i, r := range out.rows {
		if r.kind == "" && r.limit != 2560 || r.pid != pid {
			t.Errorf("row %d: %v", i, r)
		}
	}
	// It charges from its exec on, and nothing was charged to the group before. A
	// thread on another CPU can have overtaken the first.
	first, last := out.rows[0], out.rows[len(out.rows)-1]
	if first.comm != "chargetrace" || last.comm != "init" {
		t.Errorf("the first row is %v, the last %v", first, last)
	}
	if !slices.ContainsFunc(out.rows, func(r row) bool { return r.current == 0 }) {
		t.Errorf("the first charge is missing: %v", out.rows[:5])
	}
	if !slices.ContainsFunc(out.rows, func(r row) bool { return r.mark == "* LIMIT REACHED" }) {
		t.Error("the limit was never reached")
	}
	path := strings.TrimPrefix(string(tr.group(root)), root)
	if want := fmt.Sprintf("--- OOM: %s ran out; init (%d) asked; killed init (%[2]d), ", path, pid); len(out.ooms) != 1 || !strings.HasPrefix(out.ooms[0], want) {
		t.Errorf("OOM kills are %q, want %q", out.ooms, want)
	}
	if want := fmt.Sprintf("chargetrace: init (%d) was killed by the OOM killer: %s ran out of memory\n", pid, path); !strings.Contains(tr.stderr.String(), want) {
		t.Errorf("no %q in %s", want, tr.stderr)
	}
	if s := tr.counted(t); s.shown != uint64(len(out.rows)) {
		t.Errorf("%d rows, summary %+v", len(out.rows), s)
	}
	checkRemoved(t, root)
}

func TestLaunchEnds(t *testing.T)   { launchEnds(t, cgroupRoot) }
func TestLaunchEndsV1(t *testing.T) { launchEnds(t, mountV1(t)) }

// launchEnds holds that no group and no process is left, however chargetrace
// ends.
func launchEnds(t *testing.T, root string) {
	const killed = 128 + int(unix.SIGKILL)
	t.Run("SIGTERM", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 50M", "hold")...)
		ps := tr.held(t, 1)
		if !exists(string(tr.group(root))) {
			t.Errorf("no %s", tr.group(root))
		}
		tr.stop(t)
		tr.status(t, 128+int(unix.SIGTERM))
		ps.checkExited(t)
		checkRemoved(t, root)
		tr.counted(t)
	})
	t.Run("SIGTERM in vain", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 50M", "stubborn")...)
		ps := tr.held(t, 1)
		tr.stop(t)
		tr.status(t, killed)
		ps.checkExited(t)
		checkRemoved(t, root)
	})
	killAndWait := func(t *testing.T, tr *tracer, ps *processes) {
		t.Helper()
		if err := tr.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := ps.wait(func(int) {}); err != nil {
			t.Fatal(err)
		}
		waitForWrite(t, root, func() bool { return !exists(string(tr.group(root))) })
	}
	t.Run("SIGKILL", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 50M", "leave", "2", "hold")...)
		killAndWait(t, tr, tr.held(t, 3))
	})
	t.Run("SIGKILL before it begins", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 50M", "hold")...)
		waitForWrite(t, root, func() bool { return exists(string(tr.group(root))) })
		// The keeper of the group, and what is to become the command.
		children := tr.children(t)
		if len(children.pids) != 2 {
			t.Errorf("%d processes, want 2", len(children.pids))
		}
		killAndWait(t, tr, children)
	})
	t.Run("left behind", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 50M", "leave", "3")...)
		ps := tr.held(t, 3)
		tr.status(t, 0)
		ps.checkExited(t)
		checkRemoved(t, root)
		if want := "chargetrace: processes left by /init and killed: 3\n"; !strings.Contains(tr.stderr.String(), want) {
			t.Errorf("no %q in %s", want, tr.stderr)
		}
	})
	t.Run("groups left behind", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 50M", "nest")...)
		ps := tr.held(t, 1)
		tr.status(t, 0)
		ps.checkExited(t)
		checkRemoved(t, root)
		if want := "chargetrace: processes left by /init and killed: 1\n"; !strings.Contains(tr.stderr.String(), want) {
			t.Errorf("no %q in %s", want, tr.stderr)
		}
	})
	t.Run("after the trace", func(t *testing.T) {
		tr := startTracer(t, "chargetrace: seen ", launching("-memory 50M -n 1", "hold")...)
		ps := tr.held(t, 1)
		if s := tr.counted(t); s.shown != 1 || !exists(string(tr.group(root))) {
			t.Errorf("%s, summary %+v", tr.group(root), s)
		}
		tr.stop(t)
		tr.status(t, 128+int(unix.SIGTERM))
		ps.checkExited(t)
		checkRemoved(t, root)
	})
}

// TestLaunchForks holds that what a command forks is traced from its start on.
func TestLaunchForks(t *testing.T) {
	tr := startTracer(t, "", launching("-memory 50M -o "+filepath.Join(t.TempDir(), "x.csv"), "leave", "2")...)
	ps := tr.held(t, 2)
	tr.status(t, 0)
	rows, err := os.ReadFile(tr.Args[4])
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range ps.pids {
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^charge,\d+,[^,]*,\d+,%d,`, pid)).Match(rows) {
			t.Errorf("no charge of %d in %s", pid, rows)
		}
	}
}

func TestLaunchStatus(t *testing.T) {
	status := func(want int, command ...string) *tracer {
		t.Helper()
		tr := startTracer(t, "", launching("", command...)...)
		tr.status(t, want)
		return tr
	}
	status(0, "exit", "0")
	if s := status(3, "exit", "3").counted(t); s.lost != 0 {
		t.Errorf("summary %+v", s)
	}

	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"plain": 0o644, "garbage": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("\x00garbage"), mode); err != nil {
			t.Fatal(err)
		}
	}
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/nowhere/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(name string) *exec.Cmd { return exec.Command("/usr/bin/chargetrace", "-memory", "50M", "--", name) }
	mustFail(t, run("missing"), 127, "chargetrace: cannot run missing: executable file not found in $PATH\nhint: ")
	mustFail(t, run(dir+"/missing"), 127, "/missing: no such file or directory\nhint: ")
	mustFail(t, run(dir+"/plain"), 126, "/plain: permission denied\nhint: ")
	mustFail(t, run(dir+"/garbage"), 126, "/garbage: exec format error\nhint: ")
	mustFail(t, run(script), 127, "/script: no such file or directory\nhint: ")
	checkRemoved(t, cgroupRoot)
}

// TestLaunchStdio passes files, arguments and signals through.
func TestLaunchStdio(t *testing.T) {
	argv := launching("-memory 50M -o /dev/null -format csv -force", "cat")
	cmd := exec.Command(argv[0], argv[1:]...)
	var stdout, stderr lineBuffer
	stdout.text, stdout.found = "cat runs\n", make(chan struct{})
	stderr.found = make(chan struct{})
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	<-stdout.found
	// From a terminal the command would get them too.
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
		t.Errorf("%v: %s", err, stderr.String())
	}
	if got := stdout.String(); got != "cat runs\nthrough\n" {
		t.Errorf("stdout is %q", got)
	}
	if !strings.Contains(stderr.String(), "\ncat talks\n") {
		t.Errorf("stderr is %q", stderr.String())
	}

	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	argv = launching("-memory 50M -o /dev/null -format csv -force", "inherited", "a b", "--", "-n")
	cmd = exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles = []*os.File{file}
	// It stays ignored, as under nohup.
	signal.Ignore(unix.SIGHUP)
	out, err := cmd.Output()
	signal.Reset(unix.SIGHUP)
	want := fmt.Sprintf("3 %s\n%q %q SIGHUP ignored true SIGTERM ignored false\n", file.Name(), []string{"a b", "--", "-n"}, "")
	if err != nil || string(out) != want {
		t.Errorf("%v, got %q, want %q", err, out, want)
	}
}

func TestLaunchIdentity(t *testing.T) {
	for name, content := range map[string]string{
		"/etc/passwd": "root:x:0:0::/root:\nsomeone:x:1000:1000::/home/someone:\nother:x:1001:1001::/home/other:\n",
		"/etc/group":  "root:x:0:\nsomeone:x:1000:\nother:x:1001:\nmore:x:2000:someone\n",
	} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(name) })
	}
	who := func(flags string, env ...string) *exec.Cmd {
		argv := launching(flags+" -o /dev/null -format csv -force", "who")
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append([]string{"PATH=/usr/bin", "HOME=/root", "USER=root", "LOGNAME=root"}, env...)
		return cmd
	}
	sudo := []string{"SUDO_UID=1000", "SUDO_GID=1000", "SUDO_USER=someone"}
	const someone = "uid 1000 gid 1000 groups [1000 2000] home /home/someone user someone logname someone caps \"\"\n"
	const other = "uid 1001 gid 1001 groups [1001] home /home/other user other logname other caps \"\"\n"
	root, err := who("").Output()
	if err != nil || !bytes.HasPrefix(root, []byte("uid 0 gid 0 groups [] home /root user root logname root caps ")) {
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
		{"", []string{"SUDO_UID=77", "SUDO_GID=78", "SUDO_USER=far"}, "uid 77 gid 78 groups [78] home / user far logname far caps \"\"\n"},
	} {
		out, err := who(tc.flags, tc.env...).Output()
		if err != nil || string(out) != tc.want {
			t.Errorf("%q %q: %v\ngot  %q\nwant %q", tc.flags, tc.env, err, out, tc.want)
		}
	}
	mustFail(t, who("-user nobody-here"), 1, "there is no user nobody-here\nhint: ")
	mustFail(t, who("-user 4711"), 1, "there is no user 4711\nhint: ")
	// What only root can read the user cannot run.
	hidden := filepath.Join(t.TempDir(), "hidden")
	if err := os.WriteFile(hidden, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/chargetrace", "-user", "other", "--", hidden)
	mustFail(t, cmd, 126, "permission denied\nhint: ")
	cmd = who("-user other")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	mustFail(t, cmd, 1, "only root can run a command as another user\nhint: ")
}

func TestLaunchLimits(t *testing.T) {
	tr := startTracer(t, "", launching("-memory 64M -high 32M -swap 0 -n 1", "limits", "memory.max", "memory.high", "memory.swap.max")...)
	if out, want := tr.status(t, 0), "memory.max 67108864\nmemory.high 33554432\nmemory.swap.max 0\n"; !strings.Contains(out, want) {
		t.Errorf("no %q in %s", want, out)
	}
	tr = startTracer(t, "", launching("-swap 1M -n 1", "limits", "memory.max", "memory.high", "memory.swap.max")...)
	if out, want := tr.status(t, 0), "memory.max max\nmemory.high max\nmemory.swap.max 1048576\n"; !strings.Contains(out, want) {
		t.Errorf("no %q in %s", want, out)
	}

	run := func() *exec.Cmd {
		argv := launching("-memory 64M", "exit", "0")
		return exec.Command(argv[0], argv[1:]...)
	}
	cmd := run()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	mustFail(t, cmd, 1, "chargetrace: cannot make a cgroup: mkdir /sys/fs/cgroup/chargetrace-", ": permission denied\nhint: run it with sudo\n")
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", cgroupRoot, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	defer remount(0)
	mustFail(t, run(), 1, ": read-only file system\nhint: in a container, ")
}

func TestLaunchLimitsV1(t *testing.T) {
	mountV1(t)
	files := []string{"limits", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}
	tr := startTracer(t, "", launching("-memory 64M -swap 1M -n 1", files...)...)
	if out, want := tr.status(t, 0), "memory.limit_in_bytes 67108864\nmemory.memsw.limit_in_bytes 68157440\n"; !strings.Contains(out, want) {
		t.Errorf("no %q in %s", want, out)
	}
	for flags, want := range map[string]string{
		"-high 1M": "cgroup v1 has no limit such as memory.high", "-swap 1M": "cgroup v1 limits swap together with memory only",
	} {
		argv := launching(flags, "exit", "0")
		mustFail(t, exec.Command(argv[0], argv[1:]...), 1, want)
	}
}

// TestLaunchSystemd makes groups where systemd owns the tree.
func TestLaunchSystemd(t *testing.T) {
	const slice = cgroupRoot + "/system.slice"
	scope := func(tr *tracer) string { return fmt.Sprintf("%s/chargetrace-%d.scope", slice, tr.Process.Pid) }
	t.Run("OOM", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 10M", "touch", "20")...)
		tr.status(t, 128+int(unix.SIGKILL))
		want := fmt.Sprintf("was killed by the OOM killer: /system.slice/chargetrace-%d.scope/command ran out of memory\n", tr.Process.Pid)
		if !strings.Contains(tr.stderr.String(), want) {
			t.Errorf("no %q in %s", want, tr.stderr)
		}
		waitForWrite(t, slice, func() bool { return !exists(scope(tr)) })
	})
	for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		t.Run(s.String(), func(t *testing.T) {
			tr := startTracer(t, "", launching("-memory 50M", "hold")...)
			ps := tr.held(t, 1)
			g := controlGroup(scope(tr) + "/command")
			if max := g.number(t, "memory.max", ""); max != 50<<20 {
				t.Errorf("memory.max is %d", max)
			}
			if pid := g.number(t, "cgroup.procs", ""); pid != int64(ps.pids[0]) {
				t.Errorf("in the cgroup is %d, want %d", pid, ps.pids[0])
			}
			if err := tr.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			if err := ps.wait(func(int) {}); err != nil {
				t.Fatal(err)
			}
			waitForWrite(t, slice, func() bool { return !exists(scope(tr)) })
		})
	}
	t.Run("failure", func(t *testing.T) {
		argv := launching("-memory 50M", "exit", "0")
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		mustFail(t, cmd, 1, "chargetrace: cannot make a cgroup: systemd-run: exit status 1: ", "\nhint: ")
		cmd = exec.Command(argv[0], argv[1:]...)
		cmd.Env = []string{"PATH="}
		mustFail(t, cmd, 1, "systemd-run", "not found", "\nhint: ")
	})
}
