package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// browser starts Chromium, once for all tests of a run.
func browser(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("there is no chromium; make tools-browser installs it")
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.WSURLReadTimeout(actionTimeout))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// longFunction is a name too long for any block.
var longFunction = "std::vector<" + strings.Repeat("std::pair<int, ", 6) + "needle" + strings.Repeat(">", 7) + strings.Repeat("::push_back", 6)

// actionTimeout is the timeout of an action, enough for a busy machine.
const actionTimeout = time.Minute

// tab is an open page.
type tab struct {
	*testing.T
	ctx context.Context
	url string

	mu         sync.Mutex
	violations []string // events that must not happen
}

// open opens a file in a window of a width.
func open(t *testing.T, browser context.Context, path string, width int64, scheme string) *tab {
	t.Helper()
	p := &tab{T: t, url: "file://" + path}
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithListener(func(e any) {
		switch e := e.(type) {
		case *runtime.EventConsoleAPICalled:
			p.addViolation("console: " + string(e.Type))
		case *runtime.EventExceptionThrown:
			p.addViolation("exception: " + e.ExceptionDetails.Text)
		case *cdplog.EventEntryAdded:
			p.addViolation("log: " + e.Entry.Text)
		case *network.EventRequestWillBeSent:
			if e.Request.URL != p.url {
				p.addViolation("request: " + e.Request.URL)
			}
		case *network.EventLoadingFailed:
			if e.BlockedReason == network.BlockedReasonCsp {
				p.addViolation("Content Security Policy: blocked")
			}
		case *page.EventJavascriptDialogOpening:
			p.addViolation("dialog: " + e.Message)
		}
	}))
	t.Cleanup(cancel)
	p.ctx = ctx
	// The first action starts the tab, which ends with the action's context: use one
	// without a timeout.
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	call(p, network.Enable, network.EnableParams{})
	call(p, runtime.Enable, cdp.Empty{})
	call(p, cdplog.Enable, cdp.Empty{})
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	p.do(chromedp.EmulateViewport(width, 900), chromedp.Navigate(p.url), chromedp.WaitReady("body"))
	return p
}

func (p *tab) addViolation(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.violations = append(p.violations, what)
}

func (p *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, actionTimeout)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.Fatal(err)
	}
}

func call[P, R any](p *tab, command cdp.Command[P, R], params P) {
	p.Helper()
	if _, err := chromedp.Call(p.ctx, command, params); err != nil {
		p.Fatal(err)
	}
}

// value returns the value of an expression, or the result of its promise.
func value[T any](p *tab, expression string) T {
	p.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.Fatalf("%s: %v", expression, err)
	}
	return v
}

// check checks that an expression is true.
func (p *tab) check(what, expression string) {
	p.Helper()
	if !value[bool](p, "(async () => Boolean("+expression+"))()") {
		p.Errorf("false: %s: %s", what, expression)
	}
}

// close closes the page, and checks that nothing forbidden happened.
func (p *tab) close() {
	p.Helper()
	value[bool](p, "new Promise(done => setTimeout(done, 50, true))") // wait for late events
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, what := range p.violations {
		p.Errorf("%s: %s", p.url, what)
	}
	if err := chromedp.Cancel(p.ctx); err != nil {
		p.Error(err)
	}
}

// picture writes a screenshot of the whole page to the directory in SCREENSHOTS, if set.
func (p *tab) picture(name string) {
	p.Helper()
	if dir := os.Getenv("SCREENSHOTS"); dir != "" {
		p.do(chromedp.EmulateViewport(value[int64](p, "innerWidth"), value[int64](p, "document.documentElement.scrollHeight")))
		p.screenshot(filepath.Join(dir, name+".png"))
	}
}

// screenshot writes the visible part of the page to a file.
func (p *tab) screenshot(path string) {
	p.Helper()
	b, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		p.Fatal(err)
	}
}

func reportOf(t *testing.T, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "x.html")
	var stderr strings.Builder
	if status := run(append(args, "-o", out), nil, io.Discard, &stderr); status != 0 {
		t.Fatal(stderr.String())
	}
	return out
}

// TestReportInBrowser opens the report of each kernel's recording in a browser.
func TestReportInBrowser(t *testing.T) {
	browser := browser(t)
	recordings, err := filepath.Glob("testdata/*.ctrace")
	if err != nil || len(recordings) < 5 {
		t.Fatal(recordings, err)
	}
	for _, recording := range recordings {
		kernel := strings.TrimSuffix(filepath.Base(recording), ".ctrace")
		t.Run(kernel, func(t *testing.T) {
			out := reportOf(t, "-r", recording)
			for _, scheme := range []string{"light", "dark"} {
				for _, width := range []int64{1280, 390} {
					p := open(t, browser, out, width, scheme)
					p.check("the title says what ran out", `document.querySelector("h1").textContent.endsWith("ran out of memory")`)
					p.check("the page fits the window", "document.documentElement.scrollWidth <= innerWidth")
					p.check("plots are drawn", `document.querySelectorAll("figure.plot").length === 2 && [...document.querySelectorAll("figure.plot")].every(f =>
						[...f.querySelectorAll(".drawing > svg")].filter(s => s.getClientRects().length).length === 1 && f.querySelector(".drawing").offsetHeight > 150)`)
					p.check("usage, limit, failures, reclaim and the kill are drawn", `[".s.usage", ".f.area", ".s.limit", ".s.failed", ".s.reclaim", ".s.kill"].every(c =>
						[...document.querySelectorAll("#plot-0 .zone " + c)].some(e => e.getClientRects().length))`)
					p.check("the scheme is "+scheme, `(getComputedStyle(document.body).backgroundColor === "rgb(255, 255, 255)") === `+map[string]string{"light": "true", "dark": "false"}[scheme])
					p.picture(kernel + "-" + scheme + "-" + map[int64]string{1280: "1280", 390: "390"}[width])
					p.close()
				}
			}
		})
	}

	t.Run("hands on", func(t *testing.T) {
		p := open(t, browser, reportOf(t, "-r", "testdata/6.1-amd64.ctrace"), 1280, "light")
		if os.Getenv("UPDATE_SCREENSHOT") != "" {
			p.do(chromedp.EmulateViewport(1280, 1120))
			p.screenshot("../../.github/report.png")
			p.do(chromedp.EmulateViewport(1280, 900))
		}
		p.do(chromedp.ScrollIntoView(chromedp.CSS("#plot-0 .drawing")))
		left, top := value[float64](p, `document.querySelector("#plot-0 .drawing").getBoundingClientRect().left`), value[float64](p, `document.querySelector("#plot-0 .drawing").getBoundingClientRect().top`)
		at := func(x float64) (float64, float64) { return left + x, top + 120 }

		const tip = `document.querySelector("#plot-0 .tip")`
		x, y := at(900)
		p.do(chromedp.MouseEvent(chromedp.MouseMoved, x, y))
		p.check("the pointer shows values", tip+`.getClientRects().length > 0 && /^82\d.* ms\n/.test(`+tip+`.textContent) && `+tip+`.textContent.includes("limit: 10.0 MiB (2,560 pages)")`)

		const box = `document.querySelector("#plot-0 .wide .zone").getAttribute("viewBox")`
		p.check("the plot shows everything", box+`.startsWith("0 0 1002 ")`)
		x2, _ := at(600)
		p.do(chromedp.MouseEvent(chromedp.MousePressed, x2, y, chromedp.ButtonLeft), chromedp.MouseEvent(chromedp.MouseMoved, x, y, chromedp.ButtonLeft),
			chromedp.MouseEvent(chromedp.MouseReleased, x, y, chromedp.ButtonLeft))
		p.check("a drag shows a range", `Math.abs(Number(`+box+`.split(" ")[2]) - 300 * 1080 / document.querySelector("#plot-0 .drawing").offsetWidth) < 3`)
		p.check("the other plots show it too", `document.querySelector("#plot-stack .wide .zone").getAttribute("viewBox").split(" ")[2] === `+box+`.split(" ")[2]`)
		p.check("the axis shows the range", `!document.querySelector("#plot-0 .wide .times").textContent.includes("770 ms")`)
		p.do(chromedp.Click(chromedp.CSS("#reset")))
		p.check("reset shows everything again", box+`.startsWith("0 0 1002 ") && document.getElementById("reset").hidden`)

		p.do(chromedp.Focus(chromedp.CSS("#plot-0 .drawing")), chromedp.KeyEvent(kb.ArrowRight), chromedp.KeyEvent(kb.ArrowRight))
		p.check("keys show values", `!`+tip+`.hidden && `+tip+`.textContent.includes("in use")`)
		p.do(chromedp.KeyEvent("+"))
		p.check("a key zooms in", "!"+box+`.startsWith("0 0 1002 ")`)
		p.do(chromedp.KeyEvent(kb.Escape))
		p.check("a key shows everything", box+`.startsWith("0 0 1002 ")`)

		p.do(chromedp.Click(chromedp.CSS("#plot-0 summary")))
		const first = `document.querySelector("#plot-0 tbody").rows[0].cells[2]`
		p.do(chromedp.Click(chromedp.CSS("#plot-0 th:nth-child(3) button")))
		p.check("a table header sorts", `document.querySelector("#plot-0 th:nth-child(3)").ariaSort === "descending" && `+first+`.textContent === "10.0 MiB"`)
		p.do(chromedp.Click(chromedp.CSS("#plot-0 th:nth-child(3) button")))
		p.check("and sorts in reverse on a second click", `document.querySelector("#plot-0 th:nth-child(3)").ariaSort === "ascending" && `+first+`.textContent !== "10.0 MiB"`)

		p.do(chromedp.Click(chromedp.CSS("#theme")))
		p.check("the button selects dark", `getComputedStyle(document.body).backgroundColor !== "rgb(255, 255, 255)"`)
		call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print"})
		p.check("print is light", `getComputedStyle(document.body).backgroundColor === "rgb(255, 255, 255)" && !document.getElementById("theme").getClientRects().length`)
		p.close()
	})

	t.Run("stacks", func(t *testing.T) {
		out := reportOf(t, "-r", record(t, stream.Info{PageSize: 4096, StartBootNanos: 1e9, KernelStacks: true}, stacked))
		// width is the width in percent of the widest block with a name; 0 if none is
		// visible.
		const width = `(name => Math.round(100 * Math.max(...[...document.querySelectorAll(".blocks svg svg")].filter(svg => svg.querySelector("text").textContent === name).map(svg =>
			svg.querySelector("rect").getBoundingClientRect().width)) / document.querySelector(".blocks").clientWidth))`
		for _, scheme := range []string{"light", "dark"} {
			for _, pixels := range []int64{1280, 390} {
				p := open(t, browser, out, pixels, scheme)
				p.check("the page fits the window", "document.documentElement.scrollWidth <= innerWidth")
				p.check("the plot by cause is drawn", `[..."012345678"].every(i => document.querySelector("#plot-cause .zone .f.p" + i))`)
				p.check("the widths of blocks are the charged pages", `"all java nginx postgres rsync curl kworker/0:1 filemap_read".split(" ").map(`+width+`).join() === "100,50,20,15,9,4,2,13"`)
				p.picture("stacks-" + scheme + "-" + map[int64]string{1280: "1280", 390: "390"}[pixels])
				p.close()
			}
		}

		p := open(t, browser, out, 1280, "light")
		p.do(chromedp.ScrollIntoView(chromedp.CSS(".blocks")))
		const tip = `document.querySelector(".flame .tip")`
		// point moves the pointer to a block.
		point := func(name string) (x, y float64) {
			t.Helper()
			at := value[[]float64](p, `(() => {
				const box = [...document.querySelectorAll(".blocks svg svg")].find(svg => svg.querySelector("text").textContent === "`+name+`").querySelector("rect").getBoundingClientRect();
				return [box.left + box.width / 2, box.top + box.height / 2];
			})()`)
			p.do(chromedp.MouseEvent(chromedp.MouseMoved, at[0], at[1]))
			return at[0], at[1]
		}
		point("nginx")
		p.check("the pointer shows a block's values", tip+`.getClientRects().length > 0 && `+tip+`.textContent === "nginx\n7.8 MiB (2,000 pages), 20.0 %"`)
		const top = `document.querySelector(".blocks").offsetTop`
		before := value[int](p, top)
		x, y := point("__pte_alloc")
		p.do(chromedp.MouseClickXY(x, y))
		p.check("blocks keep their position", fmt.Sprintf("%s === %d", top, before))
		p.check("a click zooms to a block, with its callers and callees", `"java do_anonymous_page __pte_alloc pte_alloc_one nginx alloc_anon_folio".split(" ").map(`+width+`).join() === "100,100,100,100,0,0"`)
		p.picture("stacks-alone")
		p.do(chromedp.EmulateViewport(1280, 900), chromedp.ScrollIntoView(chromedp.CSS(".blocks")))
		x, y = point("java")
		p.do(chromedp.MouseClickXY(x, y))
		p.check("a click on a caller zooms out to it", `"java __pte_alloc alloc_anon_folio".split(" ").map(`+width+`).join() === "100,6,90"`)
		p.do(chromedp.Click(chromedp.CSS(".tools button")))
		p.check("the button shows everything", width+`("java") === 50 && document.querySelector(".tools button").hidden`)

		p.do(chromedp.Focus(chromedp.CSS(".blocks")), chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.ArrowRight))
		p.check("keys show a block's values", tip+`.textContent.startsWith("nginx\n")`)
		p.do(chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.ArrowUp), chromedp.KeyEvent(kb.Enter))
		p.check("a key zooms to it", `"all nginx vfs_read java".split(" ").map(`+width+`).join() === "100,100,65,0"`)
		p.do(chromedp.KeyEvent(kb.Escape))
		p.check("a key shows everything", width+`("java") === 50`)

		p.do(chromedp.SendKeys(chromedp.CSS(".tools input"), "FILEMAP_"))
		p.check("a search shows the share of matching blocks", `document.querySelector(".found").textContent === "25.0 %" && document.querySelectorAll(".blocks svg svg:not(.dim)").length === 7`)
		p.picture("stacks-search")
		call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print"})
		p.check("print shows the blocks", width+`("java") === 50 && !document.querySelector(".tools").getClientRects().length`)
		p.close()
	})

	t.Run("long names", func(t *testing.T) {
		out := reportOf(t, "-r", record(t, stream.Info{PageSize: 4096, StartBootNanos: 1e9, KernelStacks: true, UserStacks: true}, func(write func(...event.Event)) {
			write(event.Event{Type: event.Stack, StackNumber: 1, Frames: stacks["anon"]}, event.Event{Type: event.Stack, StackNumber: 2, Frames: longFunction + " [app]+0x1"})
			none := event.Level{MaxPages: 1 << 62}
			e := event.Event{Type: event.Charge, BootNanos: 1e9, PID: 1, Kind: event.Memory, Outcome: event.OK, MaxPages: none.MaxPages, Limiting: none, High: none, KernelStack: 1}
			e.RequestedPages = 1
			write(e)
			e.RequestedPages, e.UserStack = 2000, 2
			write(e)
		}))
		p := open(t, browser, out, 1280, "light")
		p.do(chromedp.ScrollIntoView(chromedp.CSS(".blocks")), chromedp.Focus(chromedp.CSS(".blocks")), chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.ArrowDown))
		p.check("keys show the full name", `document.querySelector(".flame .tip").textContent.startsWith("`+longFunction+` [app]\n")`)
		p.check("the page fits the window", "document.documentElement.scrollWidth <= innerWidth")
		p.picture("stacks-long")
		p.do(chromedp.SendKeys(chromedp.CSS(".tools input"), "needle"))
		p.check("a search finds hidden blocks", `document.querySelector(".found").textContent === "at least 100.0 %" && !document.querySelector(".blocks").textContent.includes("needle")`)
		p.close()
	})

	t.Run("hostile", func(t *testing.T) {
		const unlimited = 1 << 62
		attacks := []string{`<svg onload=x=1`, `'"><b id=x>{{.}}`, "</script>", "</style><img>", "`${x=1}`", "\x1b]0;x\x07\u202e"}
		meta := stream.Info{PageSize: 4096, Host: `</script><script>x=1</script>`, Kernel: `"><img src=x onerror=x=1>`, CommandLine: []string{`<img src="https://example.invalid/">`}}
		path := record(t, meta, func(write func(...event.Event)) {
			write(event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}})
			for i, attack := range attacks {
				id := event.CgroupID{ID: uint64(10 + i)}
				write(event.Event{Type: event.CgroupName, Cgroup: id, ParentID: 1, Name: strings.ReplaceAll(attack, "/", "") + "<img src=x onerror=x=1>"})
				write(event.Event{Type: event.Stack, StackNumber: uint32(i + 1), Frames: "pipe_write;</script><svg/onload=x=1>;" + strings.ReplaceAll(attack, " ", "/") + "<img/src=x/onerror=x=1>"})
				e := event.Event{
					Type: event.Charge, BootNanos: uint64(i+1) * 1e6, KernelStack: uint32(i + 1), PID: uint32(i + 1), TID: 1, Cgroup: id, Kind: event.Memory, Outcome: event.OK,
					RequestedPages: 64, MaxPages: 100, Limiting: event.Level{CgroupID: id.ID, MaxPages: 100}, High: event.Level{MaxPages: unlimited},
				}
				copy(e.Comm[:15], attack)
				write(e)
				e.BootNanos += 1000
				e.Outcome, e.FailedAt = event.Failed, id.ID
				write(e)
				e.Type, e.Victim = event.OOMKill, event.Victim{PID: 1, Comm: e.Comm}
				write(e)
			}
		})
		p := open(t, browser, reportOf(t, "-r", path), 390, "light")
		p.check("functions are text", `document.querySelector(".blocks").textContent.includes("</script><svg/onload=x=1>")`)
		p.close()
		for _, out := range []string{reportOf(t, "-r", path), reportOf(t, "-r", path, "-diff", path)} {
			p := open(t, browser, out, 390, "light")
			p.check("the page fits the window", "document.documentElement.scrollWidth <= innerWidth")
			p.picture("hostile")
			value[bool](p, `[...document.querySelectorAll("th button")].map(head => head.click()).length > 0`)
			value[bool](p, `[...document.querySelectorAll(".drawing, .blocks")].every(drawing =>
				[..."12345678"].every(() => !drawing.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", cancelable: true }))))`)
			value[bool](p, `[...document.querySelectorAll(".blocks rect")].every(rect => ["pointermove", "click"].every(type => rect.dispatchEvent(new MouseEvent(type, { bubbles: true }))))`)
			p.check("no name became an element or ran", `typeof x === "undefined" && !document.querySelector("img, b, [onload], [onerror]") && document.scripts.length <= 2`)
			p.check("names are text", `document.body.textContent.includes("<svg onload=x=1") && document.body.textContent.includes("<img src=x onerror=x=1>")`)
			p.close()
		}
		// The policy also blocks elements that the page's own script adds.
		p = open(t, browser, reportOf(t, "-r", path), 1280, "light")
		value[bool](p, `document.body.insertAdjacentHTML("beforeend", "<img src=https://example.invalid/ onerror=y=1><svg onload=y=1>"),
			document.body.append(Object.assign(document.createElement("script"), { textContent: "y=1" })), true`)
		p.check("no inserted script runs", `await new Promise(done => setTimeout(done, 100)) ?? typeof y === "undefined"`)
		p.mu.Lock()
		defer p.mu.Unlock()
		// The browser reports a request before it checks the policy.
		for _, what := range p.violations {
			if !strings.Contains(what, "Content Security Policy") && what != "request: https://example.invalid/" {
				t.Error(what)
			}
		}
		if !slices.Contains(p.violations, "Content Security Policy: blocked") {
			t.Errorf("the request was not blocked: %q", p.violations)
		}
	})
}
