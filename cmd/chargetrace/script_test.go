//go:build !guest

package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){"chargetrace": main})
}

type tests struct{ *testing.M }

// Run runs the tests, and prints again what failed in a guest.
func (t tests) Run() int {
	status := t.M.Run()
	io.WriteString(os.Stdout, guestFailures.String())
	return status
}

func TestScripts(t *testing.T) {
	recordings, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("RECORDINGS", recordings)
			return nil
		},
	})
}
