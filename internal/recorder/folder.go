package recorder

import (
	"bufio"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"chargetrace/internal/trace"
)

// Folder is where recordings are saved. It touches no file but those that it wrote, or that an
// earlier Folder wrote under the name that they still have.
type Folder struct {
	root *os.Root
	o    FolderOptions

	mu sync.Mutex // one file is written at a time
	// candidates are the files that were looked at, by name.
	candidates map[string]candidate
}

// FolderOptions configure a Folder.
type FolderOptions struct {
	// MaxFiles and MaxBytes limit the recordings: the oldest are removed. 0 is no limit. The last
	// one is kept, however large it is.
	MaxFiles int
	MaxBytes int64
	// Prepare is called for each new file, and for a new folder, if it is not nil.
	Prepare func(*os.File) error
	// Dropped is called for each recording that was removed because the disk is full.
	Dropped func(path string)

	// order returns the place of a recording among the others by its name; ok is false for
	// another name. nil: a folder of the flight recorder.
	order func(name string) (key string, ok bool)
}

// candidate is a file with the name of a recording, with its size and time when it was looked at.
type candidate struct {
	size     int64
	modified time.Time
	isOurs   bool // a Folder wrote it
}

const (
	extension     = ".ctrace"
	pageExtension = ".html"
	partPrefix    = ".chargetrace-part-" // a file that is being written
	stampLayout   = "20060102T150405Z"
	maxNamePart   = 100 // bytes of a cgroup's name in the name of a file
	maxTaken      = 10  // attempts to find a free name
)

// ownName matches the names of recordings, with the time.
var ownName = regexp.MustCompile(`^(?:oom|limit|high|[0-9]{1,2}pct|lost|exit|signal)-([0-9]{8}T[0-9]{6}Z)-[A-Za-z0-9._-]+\` + extension + `$`)

// fileName returns "oom-20261129T170625Z-NAME.ctrace", with a NAME without blanks or slashes.
func fileName(reason Reason, at time.Time, name string) string {
	safe := strings.Map(func(c rune) rune {
		if c < 0x80 && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c)) {
			return c
		}
		return '_'
	}, strings.ReplaceAll(strings.Trim(name, "/"), " · ", "-"))
	if safe == "" {
		safe = "machine"
	}
	return reason.inFile() + "-" + at.Format(stampLayout) + "-" + safe[:min(len(safe), maxNamePart)] + extension
}

// OpenFolder opens a folder, and makes it if it does not exist. It removes what a killed
// chargetrace has not finished writing there. Close it.
func OpenFolder(path string, o FolderOptions) (*Folder, error) {
	made := os.Mkdir(path, 0o700)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return nil, made
	}
	o.order = stampOf
	f, err := openFolder(path, o)
	if err != nil {
		return nil, err
	}
	if made == nil {
		err = f.prepareSelf()
	}
	if err := errors.Join(err, f.removeParts()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// stampOf returns the time in the name of a recording of the flight recorder.
func stampOf(name string) (stamp string, ok bool) {
	m := ownName.FindStringSubmatch(name)
	if m == nil {
		return "", false
	}
	return m[1], true
}

func openFolder(path string, o FolderOptions) (*Folder, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &Folder{root: root, o: o, candidates: make(map[string]candidate)}, nil
}

// create creates a file that only the calling user can read.
func (f *Folder) create(name string) (*os.File, error) {
	file, err := f.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil || f.o.Prepare == nil {
		return file, err
	}
	if err := f.o.Prepare(file); err != nil {
		return nil, errors.Join(err, file.Close(), f.root.Remove(name))
	}
	return file, nil
}

// prepareSelf prepares a new folder.
func (f *Folder) prepareSelf() error {
	if f.o.Prepare == nil {
		return nil
	}
	dir, err := f.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return f.o.Prepare(dir)
}

// Close closes the folder.
func (f *Folder) Close() error { return f.root.Close() }

// Path returns the path of a file in the folder.
func (f *Folder) Path(name string) string { return filepath.Join(f.root.Name(), name) }

// removeParts removes the files that nobody writes any more.
func (f *Folder) removeParts() error {
	entries, err := f.entries()
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), partPrefix) || !e.Type().IsRegular() {
			continue
		}
		if part, err := f.root.OpenFile(e.Name(), os.O_RDWR, 0); err == nil {
			if tryLock(part) {
				f.root.Remove(e.Name())
			}
			part.Close()
		}
	}
	return err
}

func (f *Folder) entries() ([]fs.DirEntry, error) {
	dir, err := f.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.ReadDir(-1)
}

// free returns a name that no file has: name, or with a number.
func (f *Folder) free(name string) string {
	base, free := strings.TrimSuffix(name, extension), name
	for n := 2; ; n++ {
		if _, err := f.root.Lstat(free); err != nil {
			return free
		}
		free = fmt.Sprintf("%s-%d%s", base, n, extension)
	}
}

// Save writes a recording of some bytes at most, with write, to a file that gets the name, or a
// similar one if there is such a file. The file has the name once all of it is on the disk. Only the
// calling user can read it. If the disk is full, Save removes the oldest recordings, but not more of
// them than the recording needs. With an error after the file was saved, it returns both.
func (f *Folder) Save(name string, bytes int64, write func(w io.Writer, name string) error) (saved string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dropped := int64(0)
	for taken := 0; ; {
		saved = f.free(name)
		isSaved, err := f.write(saved, func(w io.Writer) error { return write(w, saved) })
		switch {
		case isSaved:
			_, dropErr := f.dropOld(saved)
			return saved, errors.Join(err, dropErr)
		case errors.Is(err, fs.ErrExist) && taken < maxTaken: // made since free
			taken++
		case isFull(err) && dropped < bytes:
			n, dropErr := f.dropForRoom("")
			if dropErr != nil {
				return "", errors.Join(err, dropErr)
			}
			dropped += n
		default:
			return "", err
		}
	}
}

// SavePage writes a page beside a recording, unless there is a file with its name. It is removed
// with the recording: a mark at its end says that it is ours.
func (f *Folder) SavePage(recording string, write func(io.Writer) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.write(pageOf(recording), func(w io.Writer) error {
		if err := write(w); err != nil {
			return err
		}
		_, err := io.WriteString(w, pageMark(recording))
		return err
	})
	return err
}

// pageMark is the end of the page beside a recording.
func pageMark(recording string) string { return "<!-- " + recording + " -->\n" }

// hasPage reports whether there is a page beside a recording that SavePage wrote, and its size.
func (f *Folder) hasPage(recording string) (size int64, ok bool) {
	mark := pageMark(recording)
	info, err := f.root.Lstat(pageOf(recording))
	if err != nil || !info.Mode().IsRegular() || info.Size() < int64(len(mark)) {
		return 0, false
	}
	page, err := f.root.OpenFile(pageOf(recording), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return 0, false
	}
	defer page.Close()
	end := make([]byte, len(mark))
	_, err = page.ReadAt(end, info.Size()-int64(len(mark)))
	return info.Size(), err == nil && string(end) == mark
}

// pageOf returns the name of the page beside a recording.
func pageOf(recording string) string { return strings.TrimSuffix(recording, extension) + pageExtension }

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// write writes a new file under another name, and gives it its name at the end. It reports whether
// it has that.
func (f *Folder) write(name string, write func(io.Writer) error) (isSaved bool, err error) {
	part := partPrefix + rand.Text()
	file, err := f.create(part)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, ignoreMissing(f.root.Remove(part)), f.sync()) }()
	defer file.Close()
	tryLock(file)
	w := bufio.NewWriterSize(file, 256<<10)
	if err := write(w); err != nil {
		return false, err
	}
	if err := errors.Join(w.Flush(), file.Sync()); err != nil {
		return false, err
	}
	err = f.root.Link(part, name)
	if err != nil && !errors.Is(err, fs.ErrExist) { // a file system without hard links
		if _, statErr := f.root.Lstat(name); statErr == nil {
			return false, fs.ErrExist
		}
		err = f.root.Rename(part, name)
	}
	return err == nil, err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sync makes the names of files durable.
func (f *Folder) sync() error {
	if runtime.GOOS == "windows" { // which cannot sync a directory
		return nil
	}
	dir, err := f.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// recording is a file in the folder.
type recording struct {
	name, key string
	candidate
	bytes   int64 // with its page
	hasPage bool
}

// recordings returns the folder's own recordings, the oldest first.
func (f *Folder) recordings() ([]recording, error) {
	entries, err := f.entries()
	if err != nil {
		return nil, err
	}
	var own []recording
	seen := make(map[string]candidate)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		key, ok := f.o.order(e.Name())
		if !ok {
			continue
		}
		known, ok := f.candidates[e.Name()]
		if !ok || known.size != info.Size() || !known.modified.Equal(info.ModTime()) {
			known = candidate{info.Size(), info.ModTime(), f.wrote(e.Name())}
		}
		seen[e.Name()] = known
		if known.isOurs {
			size, ok := f.hasPage(e.Name())
			own = append(own, recording{e.Name(), key, known, info.Size() + size, ok})
		}
	}
	f.candidates = seen
	slices.SortFunc(own, func(a, b recording) int {
		return cmp.Or(cmp.Compare(a.key, b.key), a.modified.Compare(b.modified), cmp.Compare(a.name, b.name))
	})
	return own, nil
}

// wrote reports whether a file is a recording that was saved under its name.
func (f *Folder) wrote(name string) bool {
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer file.Close()
	r, err := trace.NewReader(file, trace.Options{Name: name})
	if err != nil {
		return false
	}
	saved := r.Info().Saved
	return saved != nil && saved.File == name
}

// dropOld removes the oldest recordings beyond the limits, but not the last one. It returns the
// bytes of those that are left. One that cannot be removed does not keep it from the others.
func (f *Folder) dropOld(last string) (bytes int64, err error) {
	if f.o.MaxFiles == 0 && f.o.MaxBytes == 0 {
		return 0, nil
	}
	own, err := f.recordings()
	if err != nil {
		return 0, err
	}
	files := len(own)
	for i := range own {
		bytes += own[i].bytes
	}
	for i := range own {
		if (f.o.MaxFiles == 0 || files <= f.o.MaxFiles) && (f.o.MaxBytes == 0 || bytes <= f.o.MaxBytes) {
			break
		}
		if own[i].name == last {
			continue
		}
		if dropErr := f.drop(&own[i]); dropErr != nil {
			err = errors.Join(err, dropErr)
			continue
		}
		files--
		bytes -= own[i].bytes
	}
	return bytes, err
}

var errNothingToDrop = errors.New("no older recording of chargetrace is left there to remove")

// dropForRoom removes the oldest recording, other than one, because the disk is full.
func (f *Folder) dropForRoom(except string) (bytes int64, err error) {
	own, err := f.recordings()
	if err != nil {
		return 0, err
	}
	for i := range own {
		if own[i].name == except {
			continue
		}
		if dropErr := f.drop(&own[i]); dropErr != nil {
			err = errors.Join(err, dropErr)
			continue
		}
		if f.o.Dropped != nil {
			f.o.Dropped(f.Path(own[i].name))
		}
		return own[i].bytes, nil
	}
	return 0, errors.Join(err, errNothingToDrop)
}

// drop removes a recording and its page.
func (f *Folder) drop(r *recording) error {
	err := ignoreMissing(f.root.Remove(r.name))
	if r.hasPage {
		err = errors.Join(err, ignoreMissing(f.root.Remove(pageOf(r.name))))
	}
	return err
}
