//go:build linux

package guest

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv(goVariable) != "" {
		goWorkload()
		return
	}
	Main(m)
}
