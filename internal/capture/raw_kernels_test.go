// The samples are in the byte order of the machines that sent them.

//go:build linux && !s390x

package capture

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRawKernels reads the samples that TestRecord recorded on each kernel, and compares
// the events with the recording of the same trace.
func TestRawKernels(t *testing.T) {
	files, err := filepath.Glob("testdata/*.raw")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("testdata has no *.raw: run make recordings")
	}
	for _, name := range files {
		kernel := strings.TrimSuffix(name, ".raw")
		t.Run(filepath.Base(kernel), func(t *testing.T) {
			raw, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			recording, err := os.Open(kernel + ".ctrace")
			if err != nil {
				t.Fatal(err)
			}
			defer recording.Close()
			checkRaw(t, raw, recording)
		})
	}
}
