// Command man converts the text of -h from stdin into a man page.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"chargetrace/internal/help"
)

func main() {
	text, err := io.ReadAll(os.Stdin)
	if err == nil && !strings.HasPrefix(string(text), "Usage: ") {
		err = fmt.Errorf("stdin does not start with \"Usage: \"")
	}
	if err == nil {
		_, err = io.WriteString(os.Stdout, help.Parse(string(text)).Man())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}
