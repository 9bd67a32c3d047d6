//go:build linux

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Kernel identifies a kernel of Debian.
type Kernel struct {
	Release string // such as 6.12
	Arch    string // a GOARCH
	// Flavor is "rt" for PREEMPT_RT and "16k" for pages of 16 KiB. "" is Debian's small
	// kernel for clouds.
	Flavor string
}

func (k Kernel) String() string {
	if k.Flavor != "" {
		return k.Release + "-" + k.Flavor + "-" + k.Arch
	}
	return k.Release + "-" + k.Arch
}

// packageSuffix returns the end of the names of the kernel's packages.
func (k Kernel) packageSuffix() string {
	switch k.Flavor {
	case "16k":
		return k.Arch + "-16k"
	case "":
		return "cloud-" + k.Arch
	}
	return k.Flavor + "-" + k.Arch
}

// suites maps a kernel release to the Debian suite that has it.
var suites = map[string]string{
	"5.10": "bullseye",
	"6.1":  "bookworm",
	"6.12": "trixie",
	"7.2":  "forky",
	"7.3":  "trixie-backports",
}

// FetchKernel returns the path of a kernel's image in the cache. If the cache has none, it
// downloads the newest of Debian's packages.
func FetchKernel(ctx context.Context, k Kernel) (string, error) {
	suite, ok := suites[k.Release]
	if !ok {
		return "", fmt.Errorf("no known Debian suite has Linux %s", k.Release)
	}
	dir, err := cached("linux-"+k.String(), func(dir string) error { return fetchKernel(ctx, dir, suite, k) })
	if err != nil {
		return "", fmt.Errorf("fetch Linux %s: %w", k, err)
	}
	for _, pattern := range []string{"boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz"} {
		if images, _ := filepath.Glob(filepath.Join(dir, pattern)); len(images) == 1 {
			return images[0], nil
		}
	}
	return "", fmt.Errorf("no kernel image in %s", dir)
}

func fetchKernel(ctx context.Context, dir, suite string, k Kernel) error {
	a, err := newAPT(ctx, suite, k.Arch)
	if err != nil {
		return err
	}
	defer a.close()
	// Since Linux 7 the image is in linux-binary-..., and linux-image-... has none.
	for _, kind := range []string{"binary", "image"} {
		pattern := fmt.Sprintf(`^linux-%s-%s\.[^ ]*-%s$`, kind, regexp.QuoteMeta(k.Release), k.packageSuffix())
		found, err := a.output(ctx, "apt-cache", "search", "--names-only", pattern)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			continue
		}
		sort := exec.CommandContext(ctx, "sort", "--version-sort")
		sort.Stdin = bytes.NewReader(found)
		sorted, err := sort.Output()
		if err != nil {
			return fmt.Errorf("sort the kernels' names: %w", err)
		}
		lines := strings.Split(strings.TrimSpace(string(sorted)), "\n")
		newest, _, _ := strings.Cut(lines[len(lines)-1], " ")
		// Leave out its dependencies, which are tools to boot it from a disk.
		return a.extract(ctx, dir, "download", newest)
	}
	return fmt.Errorf("none in Debian %s", suite)
}

// qemuSuite is the Debian suite whose QEMU runs the machines. With its QEMU 10.0, Linux
// 5.10 and 6.1 boot with two CPUs and -icount; with QEMU 7.2 they hang.
const qemuSuite = "trixie"

// fetchQEMU returns the first arguments of a command line that runs an emulator. The
// emulator and all its libraries are those of [qemuSuite], not of this machine's release.
func fetchQEMU(ctx context.Context, emulator string) ([]string, error) {
	dir, err := cached("qemu-"+qemuSuite, func(dir string) error {
		a, err := newAPT(ctx, qemuSuite, runtime.GOARCH)
		if err != nil {
			return err
		}
		defer a.close()
		return a.extract(ctx, dir, "install", "--download-only", "--yes", "--no-install-recommends", "qemu-system-x86", "qemu-system-arm")
	})
	if err != nil {
		return nil, fmt.Errorf("fetch QEMU: %w", err)
	}
	loaders, _ := filepath.Glob(filepath.Join(dir, "usr/lib/*/ld-linux-*.so.*"))
	if len(loaders) != 1 {
		return nil, fmt.Errorf("want one dynamic loader in %s, found %q", dir, loaders)
	}
	args := []string{loaders[0], "--library-path", filepath.Dir(loaders[0]), filepath.Join(dir, "usr/bin", emulator)}
	for _, firmware := range []string{"qemu", "seabios"} {
		args = append(args, "-L", filepath.Join(dir, "usr/share", firmware))
	}
	return args, nil
}

// FetchTree returns a directory in the cache with the contents of Debian packages and their
// dependencies for a GOARCH, without documentation.
func FetchTree(ctx context.Context, suite, arch string, packages ...string) (string, error) {
	dir, err := cached(strings.Join(packages, "+")+"-"+suite+"-"+arch, func(dir string) error {
		a, err := newAPT(ctx, suite, arch)
		if err != nil {
			return err
		}
		defer a.close()
		install := []string{"install", "--download-only", "--yes", "--no-install-recommends"}
		if err := a.extract(ctx, dir, append(install, packages...)...); err != nil {
			return err
		}
		// Debian's base-files makes these links.
		for _, name := range []string{"bin", "lib", "lib64", "sbin"} {
			if err := os.Symlink("usr/"+name, filepath.Join(dir, name)); err != nil && !os.IsExist(err) {
				return err
			}
		}
		return os.RemoveAll(filepath.Join(dir, "usr/share"))
	})
	if err != nil {
		return "", fmt.Errorf("fetch %s for %s: %w", strings.Join(packages, ", "), arch, err)
	}
	return dir, nil
}

// cached returns a directory in the cache. If it does not exist, cached calls fill to make
// it, up to fetchAttempts times. It does not keep a directory for which fill failed.
func cached(name string, fill func(dir string) error) (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache := filepath.Join(user, "chargetrace", "vm")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	// Other callers, in this or another process, wait for the first.
	lock, err := os.Create(filepath.Join(cache, name+".lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	// The archive can change between fetching its lists and its packages.
	for range fetchAttempts {
		if err = fillNew(dir, fill); err == nil {
			return dir, nil
		}
	}
	return "", err
}

// fetchAttempts is the number of attempts to fetch something.
const fetchAttempts = 3

// fillNew makes a directory that exists only after fill succeeded.
func fillNew(dir string, fill func(dir string) error) error {
	unfinished, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".")
	if err != nil {
		return err
	}
	defer os.RemoveAll(unfinished)
	if err := fill(unfinished); err != nil {
		return err
	}
	return os.Rename(unfinished, dir)
}

// apt runs Debian's package manager with its own state, for any suite and architecture.
type apt struct {
	dir  string
	args []string
}

// newAPT reads the package lists of a suite from the source of this machine's packages.
func newAPT(ctx context.Context, suite, arch string) (_ *apt, err error) {
	uri, err := debianURI(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "apt-")
	if err != nil {
		return nil, err
	}
	a := &apt{dir: dir}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	for _, sub := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	source := "Types: deb\nURIs: " + uri + "\nSuites: " + suite + "\nComponents: main\n"
	const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	if _, err := os.Stat(keyring); err == nil {
		source += "Signed-By: " + keyring + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "debian.sources"), []byte(source), 0o644); err != nil {
		return nil, err
	}
	// No package counts as installed.
	if err := os.WriteFile(filepath.Join(dir, "status"), nil, 0o644); err != nil {
		return nil, err
	}
	for _, option := range []string{
		"Dir::Etc::sourcelist=" + filepath.Join(dir, "debian.sources"),
		"Dir::Etc::sourceparts=/dev/null",
		"Dir::State::lists=" + filepath.Join(dir, "lists"),
		"Dir::State::status=" + filepath.Join(dir, "status"),
		"Dir::Cache=" + dir,
		"Dir::Cache::archives=" + filepath.Join(dir, "archives"),
		"APT::Architecture=" + arch,
		"APT::Architectures=" + arch,
		"APT::Sandbox::User=",
		"Acquire::Languages=none",
		"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"Acquire::Retries=3",
		"Debug::NoLocking=true",
	} {
		a.args = append(a.args, "-o", option)
	}
	_, err = a.output(ctx, "apt-get", "update", "--quiet")
	return a, err
}

// debianURI returns the URI of this machine's Debian archive.
func debianURI(ctx context.Context) (string, error) {
	targets, err := exec.CommandContext(ctx, "apt-get", "indextargets",
		"--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("ask apt for its sources: %w", err)
	}
	osRelease, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(targets)) {
		release, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		component, uri, _ := strings.Cut(rest, " ")
		if component == "main" && bytes.Contains(osRelease, []byte("VERSION_CODENAME="+release+"\n")) {
			return uri, nil
		}
	}
	return "", errors.New("apt has no source for this machine's own Debian release")
}

// output runs a command of apt with a's state.
func (a *apt) output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, append(a.args[:len(a.args):len(a.args)], args...)...)
	cmd.Dir = filepath.Join(a.dir, "archives")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, args[0], err, stderr.Bytes())
	}
	return out, nil
}

// extract runs apt-get, and unpacks the downloaded packages into dir.
func (a *apt) extract(ctx context.Context, dir string, aptGet ...string) error {
	if _, err := a.output(ctx, "apt-get", aptGet...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(a.dir, "archives", "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) == 0 {
		return fmt.Errorf("apt-get %s downloaded nothing", strings.Join(aptGet, " "))
	}
	for _, deb := range debs {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "--extract", deb, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w\n%s", filepath.Base(deb), err, out)
		}
	}
	return nil
}

func (a *apt) close() { os.RemoveAll(a.dir) }
