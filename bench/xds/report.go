package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is everything that was measured.
type report struct {
	Machine  machine
	Rounds   []*round
	Promises []promise
}

// machine is where. A load above its processors, from others, makes CPU times a third longer and wall times meaningless.
type machine struct {
	CPUs   int
	Go     string
	Kernel string
	Load   string // at the start
}

type round struct {
	Name    string
	Size    size
	Servers map[string]*result
	order   []string
}

func (r *report) describe() {
	r.Machine = machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Kernel: firstWords("/proc/sys/kernel/osrelease", 1), Load: firstWords("/proc/loadavg", 3)}
}

// firstWords is the beginning of a file of the kernel; empty where there is none.
func firstWords(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	words := strings.Fields(string(data))
	return strings.Join(words[:min(n, len(words))], " ")
}

func (r *report) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d CPUs, %s, Linux %s, load before %s\n", r.Machine.CPUs, r.Machine.Go, r.Machine.Kernel, r.Machine.Load)
	for _, x := range r.Rounds {
		x.print(w)
	}
	if len(r.Promises) > 0 {
		fmt.Fprintln(w, "\npromised\tmust\thoped for\tmeasured")
		for _, p := range r.Promises {
			sign, verdict := "<=", ""
			if p.AtLeast {
				sign = ">="
			}
			if !p.Met {
				verdict = "  MISSED"
			}
			fmt.Fprintf(w, "%s\t%s %g %s\t%g\t%.3g%s\n", p.What, sign, p.Must, p.Unit, p.Hoped, p.Measured, verdict)
		}
	}
	return w.Flush()
}

func (r *round) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s: %s\n", r.Name, r.Size)
	fmt.Fprint(w, "server CPU, ms (wall until the last one)")
	for _, n := range r.order {
		fmt.Fprintf(w, "\t%s", n)
	}
	ours := r.Servers["weft"]
	compared := slices.DeleteFunc(slices.Clone(r.order), func(n string) bool { return n == "weft" })
	for _, n := range compared {
		if n == "floor" {
			fmt.Fprint(w, "\tweft/floor")
		} else {
			fmt.Fprintf(w, "\t%s/weft", n)
		}
	}
	fmt.Fprintln(w, "\tmessages, bytes\tspread of weft's CPU")
	row := func(title string, of func(*result) (figure, bool)) {
		mine, ok := of(ours)
		if !ok {
			return
		}
		fmt.Fprint(w, title)
		for _, n := range r.order {
			if f, ok := of(r.Servers[n]); ok {
				fmt.Fprintf(w, "\t%s (%s)", ms(f.CPU), ms(f.Wall))
			} else {
				fmt.Fprint(w, "\t-")
			}
		}
		for _, n := range compared {
			f, ok := of(r.Servers[n])
			switch {
			case !ok || f.CPU == 0 || mine.CPU == 0:
				fmt.Fprint(w, "\t-")
			case n == "floor":
				fmt.Fprintf(w, "\t%.1f", float64(mine.CPU)/float64(f.CPU))
			default:
				fmt.Fprintf(w, "\t%.1f", float64(f.CPU)/float64(mine.CPU))
			}
		}
		fmt.Fprintf(w, "\t%d, %s\t%s-%s\n", mine.Messages, amount(mine.Bytes), ms(mine.CPUMin), ms(mine.CPUMax))
	}
	row(fmt.Sprintf("connect %d", r.Size.Sidecars), func(r *result) (figure, bool) { return r.Connect, true })
	for _, work := range works {
		row(titles[work], func(r *result) (figure, bool) { f, ok := r.Work[work]; return f, ok })
	}
	line := func(title string, of func(*result) string) {
		fmt.Fprint(w, title)
		for _, n := range r.order {
			fmt.Fprintf(w, "\t%s", of(r.Servers[n]))
		}
		fmt.Fprintln(w)
	}
	line("bytes per sidecar", func(r *result) string { return amount(r.BytesPerSidecar) })
	line("RSS before, connected, collected, peak", func(r *result) string {
		return fmt.Sprintf("%.0f, %.0f, %.0f, %.0f MB", mega(r.RSSBefore), mega(r.RSSConnected), mega(r.RSS), mega(r.Peak))
	})
	line("RSS per idle sidecar", func(r *result) string { return fmt.Sprintf("%.0f KB", r.PerSidecar/1024) })
	if s := ours.Staying; s != nil {
		fmt.Fprintf(w, "%d proxies that stay; ms: median, p95, max\tendpoint to each of them\treadiness\n", r.Size.Staying)
		for _, x := range []struct {
			title string
			during
		}{{"nobody else is there", s.Alone}, {fmt.Sprintf("%d others connect again, in %s ms", r.Size.Sidecars, ms(s.Storm.Wall)), s.Storm}, {"the others are there", s.Crowded}} {
			fmt.Fprintf(w, "%s\t%s\t%s\n", x.title, x.Endpoint, x.Ready)
		}
	}
	line("CPU of the proxies while they connect", func(r *result) string { return ms(r.Connect.Proxies) + " ms" })
}

var titles = map[string]string{
	"endpoint":           "one endpoint",
	"virtualservice":     "one VirtualService",
	"elsewhere":          "one VirtualService of a host that nobody uses",
	"destinationrule":    "one DestinationRule",
	"peerauthentication": "mesh-wide PeerAuthentication",
	"rollout":            "rollout of 100 pods",
	"churn":              "10 VirtualServices a second",
	"storm":              "all connect again, nothing changed",
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }

func amount(n int64) string {
	if n < 10<<20 {
		return fmt.Sprintf("%.1f KB", float64(n)/1024)
	}
	return fmt.Sprintf("%.0f MB", mega(n))
}
