package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// figure is what one piece of work cost the server.
type figure struct {
	CPU      time.Duration // of the server
	Wall     time.Duration // from the change until the last proxy had it
	Messages int64
	Bytes    int64
}

// result is one server's.
type result struct {
	Start           time.Duration // CPU before anybody connects
	RSSBefore       int64
	RSS             int64 // with all proxies connected, after a collection
	Peak            int64
	Connect         figure
	Work            map[string]figure
	BytesPerSidecar int64
}

// works are the changes that are measured, in their order. Those of one resource are made several times, and the median counts.
var works = []string{"endpoint", "virtualservice", "destinationrule", "peerauthentication", "rollout", "churn", "storm"}

const repeats = 5

// profiledWork is what -cpuprofile looks at.
var profiledWork string

func measure(s size, name, path, profile string) (*result, error) {
	r := &result{Work: map[string]figure{}}
	if name == "floor" {
		path += ".floor"
	}
	server, err := start(s, name, path)
	if err != nil {
		return nil, err
	}
	defer server.end()
	var before, after usage
	if err := server.ask(&before, "usage"); err != nil {
		return nil, err
	}
	if name != "floor" {
		if err := server.ask(&before, "tidy"); err != nil {
			return nil, err
		}
	}
	r.Start, r.RSSBefore = before.CPU, before.RSS
	proxies, err := start(s, "crowd", path)
	if err != nil {
		return nil, err
	}
	defer proxies.end()
	var h heard
	if err := proxies.ask(&h, "mark"); err != nil {
		return nil, err
	}
	profiled := func(verb, work string) error {
		if profile == "" || name != "weft" || work != profiledWork {
			return nil
		}
		return server.ask(&usage{}, verb)
	}
	if err := profiled("profile "+profile, "connect"); err != nil {
		return nil, err
	}
	if err := server.ask(&before, "usage"); err != nil {
		return nil, err
	}
	if err := proxies.ask(&h, "connect"); err != nil {
		return nil, err
	}
	if err := server.ask(&after, "usage"); err != nil {
		return nil, err
	}
	if err := profiled("profiled", "connect"); err != nil {
		return nil, err
	}
	r.Connect = figure{after.CPU - before.CPU, time.Duration(h.Last - before.At), h.Messages, h.Bytes}
	r.BytesPerSidecar = h.Bytes / int64(s.Sidecars)
	r.Peak = after.Max
	if name == "weft" {
		// The floor has to send as much.
		if err := addBytes(path, int(r.BytesPerSidecar)); err != nil {
			return nil, err
		}
	}
	if name != "floor" {
		if err := server.ask(&after, "tidy"); err != nil {
			return nil, err
		}
		r.RSS = after.RSS
	}
	for _, w := range works {
		verb, times := w, repeats
		switch {
		case name == "floor" && w != "endpoint" && w != "virtualservice":
			continue
		case name == "baseline" && !slices.Contains([]string{"endpoint", "virtualservice", "destinationrule"}, w):
			continue
		case w == "churn":
			verb, times = fmt.Sprintf("churn %d", int(s.Churn/(100*time.Millisecond))), 1
		case w == "rollout":
			times = 1
		case w == "storm":
			times = 1
			if s.Protocol != "delta" {
				continue // the state of the world is sent whole
			}
		}
		var all []figure
		if err := profiled("profile "+profile, w); err != nil {
			return nil, err
		}
		for n := range times + 1 {
			f, err := once(s, name, w, verb, server, proxies)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w, err)
			}
			// The first one makes the object; it changes from then on.
			if n > 0 || times == 1 {
				all = append(all, f)
			}
			if times == 1 {
				break
			}
		}
		if err := profiled("profiled", w); err != nil {
			return nil, err
		}
		slices.SortFunc(all, func(a, b figure) int { return int(a.CPU - b.CPU) })
		r.Work[w] = all[len(all)/2]
	}
	return r, nil
}

// pushBytes is what the floor sends for a change: as much as weft's message.
var pushBytes = map[string]int64{}

func once(s size, name, work, verb string, server, proxies *process) (figure, error) {
	var before, after usage
	var h heard
	if work == "storm" {
		// Everybody reconnects at once, and tells what he has.
		if err := proxies.ask(&h, "disconnect"); err != nil {
			return figure{}, err
		}
		if err := server.ask(&before, "usage"); err != nil {
			return figure{}, err
		}
		if err := proxies.ask(&h, "connect"); err != nil {
			return figure{}, err
		}
		time.Sleep(time.Second) // what is unchanged is not answered: nothing else says that the server is done
		if err := server.ask(&after, "usage"); err != nil {
			return figure{}, err
		}
		return figure{after.CPU - before.CPU, time.Duration(h.Last - before.At), h.Messages, h.Bytes}, nil
	}
	if err := proxies.ask(&h, "mark"); err != nil {
		return figure{}, err
	}
	if name == "floor" {
		verb = fmt.Sprintf("push %d", pushBytes[work])
	}
	if err := server.ask(&before, verb); err != nil {
		return figure{}, err
	}
	if err := proxies.ask(&h, "settle"); err != nil {
		return figure{}, err
	}
	if err := server.ask(&after, "usage"); err != nil {
		return figure{}, err
	}
	if name == "weft" {
		pushBytes[work] = h.Bytes / h.Messages
	}
	return figure{after.CPU - before.CPU, time.Duration(h.Last - before.At), h.Messages, h.Bytes}, nil
}

func addBytes(path string, n int) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s setup
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	s.Bytes = n
	return s.write(path + ".floor")
}

func print(s size, servers []string, results map[string]*result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	defer w.Flush()
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
	mb := func(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/(1<<20)) }
	fmt.Fprint(w, "server CPU (wall)")
	for _, n := range servers {
		fmt.Fprintf(w, "\t%s", n)
	}
	if results["baseline"] != nil {
		fmt.Fprint(w, "\tbaseline/weft")
	}
	if results["floor"] != nil {
		fmt.Fprint(w, "\tweft/floor")
	}
	fmt.Fprintln(w)
	row := func(title string, of func(*result) (figure, bool)) {
		fmt.Fprint(w, title)
		for _, n := range servers {
			if f, ok := of(results[n]); ok {
				fmt.Fprintf(w, "\t%s (%s)", ms(f.CPU), ms(f.Wall))
			} else {
				fmt.Fprint(w, "\t-")
			}
		}
		ours, _ := of(results["weft"])
		for _, n := range []string{"baseline", "floor"} {
			if results[n] == nil {
				continue
			}
			f, ok := of(results[n])
			switch {
			case !ok || f.CPU == 0 || ours.CPU == 0:
				fmt.Fprint(w, "\t-")
			case n == "baseline":
				fmt.Fprintf(w, "\t%.1fx", float64(f.CPU)/float64(ours.CPU))
			default:
				fmt.Fprintf(w, "\t%.1fx", float64(ours.CPU)/float64(f.CPU))
			}
		}
		fmt.Fprintln(w)
	}
	row(fmt.Sprintf("connect %d", s.Sidecars), func(r *result) (figure, bool) { return r.Connect, true })
	for _, work := range works {
		row(work, func(r *result) (figure, bool) { f, ok := r.Work[work]; return f, ok })
	}
	fmt.Fprint(w, "bytes per sidecar")
	for _, n := range servers {
		fmt.Fprintf(w, "\t%.0f KB", float64(results[n].BytesPerSidecar)/1024)
	}
	fmt.Fprint(w, "\nRSS before, connected, peak")
	for _, n := range servers {
		fmt.Fprintf(w, "\t%s, %s, %s", mb(results[n].RSSBefore), mb(results[n].RSS), mb(results[n].Peak))
	}
	fmt.Fprint(w, "\nRSS per idle sidecar")
	for _, n := range servers {
		fmt.Fprintf(w, "\t%.0f KB", float64(results[n].RSS-results[n].RSSBefore)/1024/float64(s.Sidecars))
	}
	fmt.Fprintln(w)
}
