//go:build linux

package guest

import (
	"bytes"
	"strings"
	"testing"
)

func TestWriteFailures(t *testing.T) {
	long := strings.Repeat("line\n", 100) + "    x_test.go:1: row: charge\nlast"
	var list []failure
	for range 20 {
		var out bytes.Buffer
		writeFailures(&out, list)
		text := out.String()
		if n := strings.Count(text, "\n"); n > 60 {
			t.Errorf("%d failures take %d lines", len(list), n)
		}
		if strings.Contains(text, "row:") || len(list) > 0 && !strings.Contains(text, "go test ./internal/guest -run '^TestX$/^6.1-amd64$'\n") ||
			strings.Count(text, "    last\n") != min(len(list), 15) {
			t.Errorf("%d failures are\n%s", len(list), text)
		}
		list = append(list, failure{"TestX/6.1-amd64", long})
	}
}
