//go:build linux

package capture

import (
	"testing"

	"chargetrace/internal/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }
