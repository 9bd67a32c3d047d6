package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func idOf(n int) string { return fmt.Sprintf("%064x", n) }

const uid = "8f9a1c2d-0b1e-4f3a-9c5d-6e7f80918273"

// write writes a file below a directory.
func write(t testing.TB, root, name, content string) {
	t.Helper()
	file := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func newFinder(t testing.TB, root string) *Finder {
	t.Helper()
	f, err := NewFinder(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestFinder finds the names that each runtime keeps.
func TestFinder(t *testing.T) {
	root := t.TempDir()
	annotations := func(pairs ...string) string {
		var all []string
		for i := 0; i < len(pairs); i += 2 {
			all = append(all, fmt.Sprintf("%q:%q", pairs[i], pairs[i+1]))
		}
		return `{"ociVersion":"1.2.0","process":{"env":["A=\"annotations\":{}"]},"annotations":{` + strings.Join(all, ",") + `}}`
	}
	cri := []string{"io.kubernetes.cri.sandbox-name", "cart-0", "io.kubernetes.cri.sandbox-namespace", "shop", "io.kubernetes.cri.sandbox-uid", uid}
	const tasks = "run/containerd/io.containerd.runtime.v2.task/"
	write(t, root, "var/log/containers/cart-0_shop_java-"+idOf(1)+".log", "")
	write(t, root, "var/log/pods/shop_cart-0_"+uid+"/java/0.log", "")
	write(t, root, tasks+"k8s.io/"+idOf(2)+"/config.json", annotations(append(cri, "io.kubernetes.cri.container-name", "envoy", "io.kubernetes.cri.container-type", "container")...))
	write(t, root, tasks+"k8s.io/"+idOf(3)+"/config.json", annotations(append(cri, "io.kubernetes.cri.container-type", "sandbox")...))
	write(t, root, tasks+"default/"+idOf(4)+"/config.json", annotations("nerdctl/name", "db"))
	write(t, root, "etc/docker/daemon.json", `{"data-root":"/data/docker"}`)
	write(t, root, "data/docker/containers/"+idOf(5)+"/config.v2.json", `{"Name":"/web","Config":{"Labels":{"a":"b"}}}`)
	write(t, root, "data/docker/containers/"+idOf(6)+"/config.v2.json", `{"Name":"/k8s_java_cart-0","Config":{"Labels":{"io.kubernetes.container.name":"java","io.kubernetes.pod.name":"cart-0","io.kubernetes.pod.namespace":"shop"}}}`)
	write(t, root, "run/containers/storage/overlay-containers/"+idOf(7)+"/userdata/config.json", annotations("io.kubernetes.container.name", "java", "io.kubernetes.pod.name", "cart-0", "io.kubernetes.pod.namespace", "shop"))
	write(t, root, "var/lib/containers/storage/overlay-containers/containers.json", `[{"id":"`+idOf(8)+`","names":["kept"]},{"id":"`+idOf(9)+`"}]`)
	write(t, root, "var/lib/containers/storage/vfs-containers/volatile-containers.json", `[{"id":"`+idOf(10)+`","names":["volatile"]}]`)
	write(t, root, "run/systemd/users/1000", "# This is private data. Do not parse.\nNAME=alice\nSTATE=active\n")
	f := newFinder(t, root)
	const pod = "/kubepods/burstable/pod" + uid
	java := Identity{Name: "java", Namespace: "shop", Pod: "cart-0"}
	for _, tc := range []struct {
		path string
		want Identity // the names, and a Runtime that the path lacks
	}{
		{pod, Identity{Namespace: "shop", Pod: "cart-0"}},
		{pod + "/" + idOf(1), java},
		{"/kubepods.slice/cri-containerd-" + idOf(2) + ".scope", Identity{Name: "envoy", Namespace: "shop", Pod: "cart-0", PodUID: uid}},
		{"/k8s.io/" + idOf(3), Identity{Runtime: "containerd", Name: "sandbox", Namespace: "shop", Pod: "cart-0", PodUID: uid}},
		{"/default/" + idOf(4), Identity{Runtime: "containerd", Name: "db"}},
		{"/system.slice/docker-" + idOf(5) + ".scope", Identity{Name: "web"}},
		{"/docker/" + idOf(6), java},
		{"/kubepods/crio-" + idOf(7), java},
		{"/machine.slice/libpod-" + idOf(8) + ".scope", Identity{Name: "kept"}},
		{"/machine.slice/libpod-" + idOf(9) + ".scope", Identity{}},
		{"/machine.slice/libpod-" + idOf(10) + ".scope", Identity{Name: "volatile"}},
		{"/machine.slice/libpod-" + idOf(5) + ".scope", Identity{}}, // that is Docker's
		{"/user.slice/user-1000.slice", Identity{User: "alice"}},
		{"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + idOf(5) + ".scope", Identity{User: "alice"}},
		{"/user.slice/user-1001.slice", Identity{}},
		{"/docker/" + idOf(99), Identity{}},
	} {
		got, complete := f.Find(tc.path)
		i, _ := Of(tc.path)
		if want := i.Update(tc.want); got != want || complete != (tc.want != Identity{}) {
			t.Errorf("%s: %+v %v, want %+v", tc.path, got, complete, want)
		}
	}

	// What comes later is found, and what has gone is still known.
	write(t, root, "var/log/containers/cart-1_shop_java-"+idOf(11)+".log", "")
	write(t, root, "var/lib/containers/storage/overlay-containers/volatile-containers.json", `[{"id":"`+idOf(12)+`","names":["later"]}]`)
	for id, want := range map[string]string{idOf(11): "java", idOf(12): "later"} {
		if got, _ := f.Find("/" + id); got.Name != want {
			t.Errorf("%s: %+v, want the name %s", id, got, want)
		}
	}
	if _, err := NewFinder(filepath.Join(root, "none")); err == nil {
		t.Error("a root that does not exist")
	}
}

// TestRoot follows symbolic links as if the root were /: they cannot leave it.
func TestRoot(t *testing.T) {
	outside, root := t.TempDir(), t.TempDir()
	secret := `{"Name":"/secret"}`
	write(t, outside, "config.v2.json", secret)
	write(t, root, "data/containers/"+idOf(1)+"/config.v2.json", `{"Name":"/moved"}`)
	write(t, root, "var/lib/x", "")
	link := func(to, name string) {
		t.Helper()
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
	link("/data", "var/lib/docker")
	link(outside+"/config.v2.json", "data/containers/"+idOf(2)+"/config.v2.json")
	link("../../../../../../../../.."+outside+"/config.v2.json", "data/containers/"+idOf(3)+"/config.v2.json")
	link("config.v2.json", "data/containers/"+idOf(4)+"/config.v2.json")
	f := newFinder(t, root)
	for n, want := range map[int]string{1: "moved", 2: "", 3: "", 4: ""} {
		if got, _ := f.Find("/docker/" + idOf(n)); got.Name != want {
			t.Errorf("%d: %+v, want the name %q", n, got, want)
		}
	}
}

// TestHostileFiles puts in the place of files with names what nobody should wait for, read whole,
// or believe.
func TestHostileFiles(t *testing.T) {
	root := t.TempDir()
	const tasks = "run/containerd/io.containerd.runtime.v2.task/k8s.io/"
	put := func(n int, make func(file string) error) {
		t.Helper()
		dir := filepath.Join(root, tasks, idOf(n))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := make(filepath.Join(dir, "config.json")); err != nil {
			t.Fatal(err)
		}
	}
	content := func(s string) func(string) error {
		return func(file string) error { return os.WriteFile(file, []byte(s), 0o644) }
	}
	named := func(name string) func(string) error {
		return content(`{"annotations":{"io.kubernetes.cri.container-name":` + name + `}}`)
	}
	put(1, func(file string) error { return unix.Mkfifo(file, 0o644) })
	put(2, func(file string) error { return os.Mkdir(file, 0o755) })
	put(3, func(file string) error { return os.Symlink("/dev/zero", file) })
	put(4, func(file string) error {
		if err := named(`"big"`)(file); err != nil {
			return err
		}
		return os.Truncate(file, 1<<30)
	})
	put(5, content(strings.Repeat("[", maxFile)))
	put(6, named(`"\u001b[31mred"`))
	put(7, named(`"`+strings.Repeat("x", maxValue+1)+`"`))
	put(8, named("\"\xff\""))
	put(9, named(`{"a":1}`))
	put(10, named(`"<b>"`)) // outputs escape it
	put(11, content(""))
	f := newFinder(t, root)
	for n := 1; n <= 11; n++ {
		want := ""
		if n == 10 {
			want = "<b>"
		}
		if n == 8 {
			want = "\ufffd" // as encoding/json reads it
		}
		if got, _ := f.Find("/kubepods/" + idOf(n)); got.Name != want {
			t.Errorf("%d: %+v, want the name %q", n, got, want)
		}
	}

	for _, name := range []string{
		"cart_shop_java", "cart_shop_java.log", "_shop_java-" + idOf(20) + ".log", "a_b_c_java-" + idOf(20) + ".log", "cart_\x1b_java-" + idOf(20) + ".log",
		"cart_shop_-" + idOf(20) + ".log", "cart_shop_java" + idOf(20) + "x.log", "cart_shop_java-" + idOf(20),
	} {
		if key, i := parseContainerLog(name); key != "" || i != (Identity{}) {
			t.Errorf("%q: %q %+v", name, key, i)
		}
	}
	for _, name := range []string{"shop_cart", "_cart_uid", "shop__uid", "a_b_c_d", "shop_\n_uid"} {
		if key, i := parsePodLog(name); key != "" || i != (Identity{}) {
			t.Errorf("%q: %q %+v", name, key, i)
		}
	}
}

// TestManyEntries has far more logs than a node has containers, and finds each of the first.
func TestManyEntries(t *testing.T) {
	root := t.TempDir()
	const entries = 10_000
	for n := range entries {
		write(t, root, fmt.Sprintf("var/log/containers/pod-%d_ns_app-%s.log", n, idOf(n)), "")
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(root, containerLogs), long, long); err != nil {
		t.Fatal(err)
	}
	f := newFinder(t, root)
	for n := range entries {
		if got, _ := f.Find("/kubepods/" + idOf(n)); got.Pod != fmt.Sprintf("pod-%d", n) {
			t.Fatalf("%d: %+v", n, got)
		}
	}
	// Cgroups that look like containers do not read the directory again.
	before := f.logs.version
	f.logs.names[idOf(entries)] = Identity{Name: "cached"}
	if f.Find("/docker/" + idOf(entries+1)); f.logs.names[idOf(entries)].Name == "" || f.logs.version != before {
		t.Error("the directory was read again")
	}
}

// BenchmarkFinder names the pods and containers of a node with 250 containers.
func BenchmarkFinder(b *testing.B) {
	for _, runtime := range []string{"kubelet", "containerd", "docker"} {
		b.Run(runtime, func(b *testing.B) {
			root := b.TempDir()
			var paths []string
			for n := range 250 {
				pod, uid := fmt.Sprintf("cart-%d", n), fmt.Sprintf("%08x-0b1e-4f3a-9c5d-6e7f80918273", n)
				path := "/kubepods/burstable/pod" + uid + "/" + idOf(n)
				switch runtime {
				case "kubelet":
					write(b, root, "var/log/containers/"+pod+"_shop_java-"+idOf(n)+".log", "")
					write(b, root, "var/log/pods/shop_"+pod+"_"+uid+"/java/0.log", "")
					paths = append(paths, filepath.Dir(path))
				case "containerd":
					write(b, root, "run/containerd/io.containerd.runtime.v2.task/k8s.io/"+idOf(n)+"/config.json", ociConfig(pod, uid))
				case "docker":
					path = "/docker/" + idOf(n)
					write(b, root, "var/lib/docker/containers/"+idOf(n)+"/config.v2.json", `{"Name":"/`+pod+`","Config":{"Env":["`+strings.Repeat("x", 4<<10)+`"]}}`)
				}
				paths = append(paths, path)
			}
			b.ReportAllocs()
			for b.Loop() {
				f, err := NewFinder(root)
				if err != nil {
					b.Fatal(err)
				}
				for _, path := range paths {
					if _, ok := f.Find(path); !ok {
						b.Fatalf("%s has no name", path)
					}
				}
				f.Close()
			}
		})
	}
}

// ociConfig returns a config.json as large as containerd's: most of it is the list of system
// calls that the default seccomp profile allows.
func ociConfig(pod, uid string) string {
	calls := strings.TrimSuffix(strings.Repeat(`"clock_nanosleep_time64",`, 400), ",")
	return `{"ociVersion":"1.2.0","process":{"args":["java"]},"linux":{"seccomp":{"syscalls":[{"names":[` + calls + `]}]}},` +
		`"annotations":{"io.kubernetes.cri.container-name":"java","io.kubernetes.cri.sandbox-name":"` + pod + `","io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-uid":"` + uid + `"}}`
}
