// Package golden compares outputs with files, for tests.
package golden

import (
	"os"
	"testing"
)

// Compare compares an output with a file. UPDATE_SCRIPTS in the environment writes the file
// first.
func Compare(t testing.TB, file, got string) {
	t.Helper()
	if os.Getenv("UPDATE_SCRIPTS") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs: got\n%s\nwant\n%s", file, got, want)
	}
}
