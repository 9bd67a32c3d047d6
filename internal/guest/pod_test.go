//go:build linux

package guest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// containerdConfig lets containerd run without overlayfs, CNI and a root that pivot_root(2)
// accepts, which an initramfs is not.
const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/busybox:1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        NoPivotRoot = true
`

const containerdSocket = "/run/containerd/containerd.sock"

// startContainerd starts containerd with an image of busybox.
func startContainerd(t *testing.T) {
	t.Helper()
	for name, content := range map[string]string{"/etc/containerd/config.toml": containerdConfig, "/etc/hosts": "", "/etc/resolv.conf": ""} {
		writeFile(t, name, content)
	}
	log := newLineBuffer("containerd successfully booted")
	containerd := exec.Command("/usr/bin/containerd", "--log-level", "info")
	containerd.Stdout, containerd.Stderr = log, log
	if err := containerd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		containerd.Process.Kill()
		containerd.Wait()
		if t.Failed() {
			t.Logf("containerd: %s", log)
		}
	})
	select {
	case <-log.found:
	case <-time.After(waitTimeout):
		t.Fatalf("containerd does not start: %s", log)
	}
	if _, err := net.Dial("unix", containerdSocket); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image.tar")
	writeFile(t, image, string(busyboxImage(t)))
	if out, err := exec.Command("/usr/bin/ctr", "--namespace", "k8s.io", "images", "import", "--local", "--snapshotter", "native", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// busyboxImage returns an image localhost/busybox:1 in the format of docker save. It runs as the
// sandbox of a pod too.
func busyboxImage(t *testing.T) []byte {
	t.Helper()
	layer := tarOf(t, map[string][]byte{"bin/busybox": []byte(readFile(t, busybox))})
	config := marshal(t, map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"/bin/busybox", "tail", "-f", "/dev/null"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	manifest := marshal(t, []any{map[string]any{"Config": "config.json", "RepoTags": []string{"localhost/busybox:1"}, "Layers": []string{"layer.tar"}}})
	return tarOf(t, map[string][]byte{"manifest.json": manifest, "config.json": config, "layer.tar": layer})
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tarOf(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestContainerd runs a pod of two containers with containerd's CRI plugin and runc: java has a
// limit, which it exceeds, and envoy has none. All outputs name both by namespace, pod and
// container, and so does the recording when the pod is gone.
func TestContainerd(t *testing.T) {
	if !Enter(t, Machine{CPUs: 1, Runtimes: true, Kernels: Kernels[2:3]}.Keeping(updateVerdict)) {
		return
	}
	clearLog(t)
	rootCgroup.write(t, "cgroup.subtree_control", "+memory +cpu +pids")
	startContainerd(t)
	const uid = "8f9a1c2d-0b1e-4f3a-9c5d-6e7f80918273"
	const limit = 20 << 20
	page := filepath.Join(t.TempDir(), "x.html")
	tr := traceKept(t, "6.12-pod", "-namespace", "shop", "-o", page)
	pod := &process{Cmd: exec.Command("/usr/bin/runpod", containerdSocket, "shop", "cart-7d9f", uid, "/kubepods/burstable/pod"+uid, "localhost/busybox:1",
		fmt.Sprintf("java:%d:x=; while :; do x=$x$x.; done", limit), "envoy:0:exec /bin/busybox tail -f /dev/null")}
	pod.Stderr = &pod.stderr
	stdout, err := pod.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	pod.start(t, 0, rootCgroup)
	pod.stdout = bufio.NewReader(stdout)
	labels := make(map[string]string)
	for _, name := range []string{"java", "envoy"} {
		id, ok := strings.CutPrefix(pod.line(t), name+" ")
		if !ok {
			t.Fatalf("%s: %s", name, &pod.stderr)
		}
		labels[name] = fmt.Sprintf("%s · %.12s · shop/cart-7d9f", name, id)
	}
	if got, want := pod.line(t), "OOMKilled 137\n"; got != want {
		t.Errorf("java ended with %q, want %q", got, want)
	}
	if _, err := fmt.Fprintln(pod.stdin); err != nil {
		t.Fatal(err)
	}
	if err := pod.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &pod.stderr)
	}
	tr.stop(t)
	charged := make(map[string]bool)
	for _, e := range tr.charges(t) {
		if c := e.Container; c == nil || c.Namespace != "shop" || c.Pod != "cart-7d9f" || c.PodUID != uid {
			t.Errorf("%v: container %+v", e, c)
		} else {
			charged[c.Name] = true
		}
	}
	checkVerdict(t, tr.stderr.String(), labels["java"], "", "memory", limit)
	if got := slices.Sorted(maps.Keys(charged)); !slices.Equal(got, []string{"", "envoy", "java", "sandbox"}) {
		t.Errorf("charges to containers %q", got)
	}
	for _, name := range []string{"java", "envoy", "sandbox"} {
		if want := "\n" + cmp.Or(labels[name], "sandbox · "); !strings.Contains(tr.stderr.String(), want) {
			t.Errorf("no %q in %s", want, tr.stderr)
		}
	}
	if html := readFile(t, page); !strings.Contains(html, labels["java"]) || !strings.Contains(html, labels["envoy"]) {
		t.Errorf("the page does not name the containers %q", labels)
	}
}

// line reads a line of a program's output.
func (p *process) line(t testing.TB) string {
	t.Helper()
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v: %s", p.Args, err, &p.stderr)
	}
	return line
}

// TestPodman runs a container of Podman, which exceeds its limit.
func TestPodman(t *testing.T) {
	if !Enter(t, Machine{CPUs: 1, Runtimes: true, Kernels: Kernels[2:3]}) {
		return
	}
	clearLog(t)
	for name, content := range map[string]string{
		"/etc/containers/containers.conf": "[engine]\nno_pivot_root = true\nlock_type = \"file\"\n", "/etc/containers/storage.conf": "[storage]\ndriver = \"vfs\"\n",
		"/etc/containers/policy.json": `{"default": [{"type": "reject"}]}`,
	} {
		writeFile(t, name, content)
	}
	root := t.TempDir()
	writeFile(t, filepath.Join(root, "bin/busybox"), readFile(t, busybox))
	if err := os.Chmod(filepath.Join(root, "bin/busybox"), 0o755); err != nil {
		t.Fatal(err)
	}
	const limit = 20 << 20
	tr := trace(t, "-container", "web")
	podman := exec.Command("/usr/bin/podman", "--cgroup-manager", "cgroupfs", "--runtime", "runc", "run", "--name", "web", "--network", "none", "--log-driver", "none",
		"--memory", fmt.Sprint(limit), "--rootfs", root, "/bin/busybox", "sh", "-c", "x=; while :; do x=$x$x.; done")
	out, err := podman.CombinedOutput()
	if status := podman.ProcessState.ExitCode(); status != 137 {
		t.Fatalf("podman: %v: %s", err, out)
	}
	tr.stop(t)
	for _, e := range tr.charges(t) {
		if c := e.Container; c == nil || c.Runtime != "podman" || c.Name != "web" {
			t.Fatalf("%v: container %+v", e, c)
		}
	}
	label := regexp.MustCompile(`(?m)^web · [0-9a-f]{12}`).FindString(tr.stderr.String())
	checkVerdict(t, tr.stderr.String(), label, "", "memory", limit)
}
