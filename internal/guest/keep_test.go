//go:build linux

package guest

import "testing"

func TestTakeKept(t *testing.T) {
	const output = "=== RUN   TestX\n    x_test.go:7: keep a.ctrace YWJj\n    x_test.go:8: seen\n        x_test.go:9: keep empty \n--- PASS: TestX (0.1s)\n"
	rest, kept, err := takeKept(output)
	if rest != "=== RUN   TestX\n    x_test.go:8: seen\n--- PASS: TestX (0.1s)\n" || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	if empty, ok := kept["empty"]; len(kept) != 2 || string(kept["a.ctrace"]) != "abc" || !ok || len(empty) != 0 {
		t.Errorf("%q", kept)
	}
	if _, kept, err = takeKept("    x_test.go:7: keep a YW!\n"); err == nil {
		t.Errorf("%q", kept)
	}
}
