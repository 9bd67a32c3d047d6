//go:build linux

package guest

import (
	"encoding/base64"
	"fmt"
	"regexp"
	"testing"

	"chargetrace/internal/vm"
)

// A Kept function gets a file that a test passed to [Keep] in the machine. It runs on the
// host after the test passed.
type Kept func(t *testing.T, k vm.Kernel, name string, content []byte)

// Keep passes a file to the host in the test's output. The name must have no spaces.
func Keep(t testing.TB, name string, content []byte) {
	t.Helper()
	t.Logf("keep %s %s", name, base64.StdEncoding.EncodeToString(content))
}

var keepLine = regexp.MustCompile(`(?m)^ +\w+\.go:\d+: keep (\S+) (\S*)\n`)

// takeKept removes the lines of Keep from a test's output, and returns the files.
func takeKept(output string) (rest string, kept map[string][]byte, err error) {
	kept = map[string][]byte{}
	for _, m := range keepLine.FindAllStringSubmatch(output, -1) {
		content, decodeErr := base64.StdEncoding.DecodeString(m[2])
		if decodeErr != nil {
			err = fmt.Errorf("file %s of the guest: %w", m[1], decodeErr)
		}
		kept[m[1]] = content
	}
	return keepLine.ReplaceAllString(output, ""), kept, err
}
