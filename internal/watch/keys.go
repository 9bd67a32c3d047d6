package watch

import (
	"slices"
	"unicode"
	"unicode/utf8"

	"chargetrace/internal/event"
	"chargetrace/internal/text"
)

// keys is the state that key presses change.
type keys struct {
	units     text.Units
	order     order
	reverse   bool
	filter    string
	filtering bool // the filter is being typed
	paused    bool
	help      bool
	selected  event.CgroupID
	entered   bool // only the selected cgroup and its ancestors are shown
	quit      bool
}

const helpText = `
  up, down, j, k  select a cgroup; PgUp, PgDn move by ten
  enter           show it alone, with its ancestors; esc goes back
  /               filter cgroups and containers by a part of their name;
                  enter keeps the filter, esc drops it
  s, S            sort by the next or the previous column; r reverses
  u               pages, bytes or human units
  p, space        pause: rows and graph stay, the trace goes on, a recording stops
  q, Ctrl-C       stop the trace; interrupt the command, if there is one

  LIMIT    the limit with the least room: the cgroup's own or, with a ^, that of
           an ancestor, or with a ~, memory.high, above which tasks sleep. The bar
           is full at the limit: the cgroup's usage, then in grey the usage of
           others below the same limit
  FILL/S   growth of that usage, over five seconds
  TO LIM   time until the limit is reached at that rate
  FAIL     failed charges a second
  MISS     batch charges a second that failed and were retried smaller
  RECL     time spent in reclaim for the cgroup; 200% is two tasks all the time
  OOM      processes killed because the cgroup ran out of memory
  +3.82s   after a name that two cgroups have: since when this one has charges
  for:     with -stack: the causes of the pages charged in five seconds
`

// press handles a key, as named by tea.Key.String. rows are those on the screen.
func (k *keys) press(key string, rows []*row) {
	if k.filtering {
		k.typeFilter(key)
		return
	}
	if k.help && key != "ctrl+c" {
		k.help = false
		return
	}
	at := max(0, slices.IndexFunc(rows, func(r *row) bool { return r.id == k.selected }))
	move := func(to int) {
		if len(rows) > 0 && !k.entered {
			k.selected = rows[min(max(0, to), len(rows)-1)].id
		}
	}
	switch key {
	case "up", "k":
		move(at - 1)
	case "down", "j":
		move(at + 1)
	case "pgup":
		move(at - 10)
	case "pgdown":
		move(at + 10)
	case "home", "g":
		move(0)
	case "end", "G":
		move(len(rows) - 1)
	case "enter", "right", "l":
		move(at)
		k.entered = len(rows) > 0
	case "esc", "left", "h", "backspace":
		switch {
		case k.entered:
			k.entered = false
		case key == "esc":
			k.filter = ""
		}
	case "s":
		k.order = (k.order + 1) % numOrders
	case "S":
		k.order = (k.order + numOrders - 1) % numOrders
	case "r":
		k.reverse = !k.reverse
	case "/":
		k.entered, k.filtering = false, true
	case "p", "space":
		k.paused = !k.paused
	case "u":
		i := slices.Index(text.AllUnits, k.units)
		k.units = text.AllUnits[(i+1)%len(text.AllUnits)]
	case "?", "f1":
		k.help = true
	case "q", "ctrl+c":
		k.quit = true
	}
}

func (k *keys) typeFilter(key string) {
	switch key {
	case "enter":
		k.filtering = false
	case "esc":
		k.filtering, k.filter = false, ""
	case "ctrl+c":
		k.quit = true
	case "backspace":
		_, size := utf8.DecodeLastRuneInString(k.filter)
		k.filter = k.filter[:len(k.filter)-size]
	case "space":
		k.filter += " "
	default:
		if r, size := utf8.DecodeRuneInString(key); size == len(key) && unicode.IsPrint(r) {
			k.filter += key
		}
	}
}
