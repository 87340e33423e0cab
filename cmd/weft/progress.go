package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// ticks shows progress as istioctl does: a line with a tick for each component that is done. On a terminal the last line
// says what is being waited for; elsewhere (a log of CI) that is a line of its own, not oftener than every ten seconds.
type ticks struct {
	mu       sync.Mutex
	out      io.Writer
	width    int // of the terminal; 0 when it is none
	shown    bool
	doing    map[string]string
	order    []string
	lastLine map[string]time.Time
	begun    map[string]time.Time

	done, failed string // what is said of a component
}

func newTicks(out io.Writer) *ticks {
	t := &ticks{out: out, doing: map[string]string{}, lastLine: map[string]time.Time{}, begun: map[string]time.Time{},
		done: "installed", failed: "not installed"}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil {
			t.width = w
		}
	}
	return t
}

const quiet = 10 * time.Second

// Begin says what a component is waiting for.
func (t *ticks) Begin(component, doing string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if _, known := t.doing[component]; !known {
		t.order = append(t.order, component)
		t.begun[component], t.lastLine[component] = now, now
	}
	changed := t.doing[component] != doing
	t.doing[component] = doing
	if t.width > 0 {
		if changed {
			t.show()
		}
		return
	}
	if now.Sub(t.lastLine[component]) >= quiet {
		t.lastLine[component] = now
		fmt.Fprintf(t.out, "  %s: %s (%s)\n", component, doing, now.Sub(t.begun[component]).Round(time.Second))
	}
}

// Done ticks a component off.
func (t *ticks) Done(component string, took time.Duration) {
	t.end("✔", component, t.done, took)
}

// Failed crosses it.
func (t *ticks) Failed(component string, took time.Duration) {
	t.end("✘", component, t.failed, took)
}

// Note prints a sentence.
func (t *ticks) Note(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	fmt.Fprintln(t.out, text)
	t.show()
}

func (t *ticks) end(mark, component, what string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.doing, component)
	t.clear()
	fmt.Fprintf(t.out, "%s %s %s (%.1f s)\n", mark, component, what, took.Seconds())
	t.show()
}

// show writes the line of what is being waited for.
func (t *ticks) show() {
	if t.width == 0 {
		return
	}
	var parts []string
	for _, c := range t.order {
		if d, ok := t.doing[c]; ok {
			parts = append(parts, c+": "+d)
		}
	}
	t.clear()
	if len(parts) == 0 {
		return
	}
	line := []rune("- " + strings.Join(parts, " | "))
	if len(line) >= t.width {
		line = append(line[:max(0, t.width-2)], '…')
	}
	fmt.Fprint(t.out, string(line))
	t.shown = true
}

func (t *ticks) clear() {
	if t.shown {
		fmt.Fprint(t.out, "\r\x1b[K")
		t.shown = false
	}
}
