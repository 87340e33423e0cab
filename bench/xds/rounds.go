package main

import "time"

// rounds are the ways in which the same mesh is served.
var rounds = []struct {
	name    string
	servers []string
	change  func(*size)
}{
	{"eager", []string{"weft", "baseline", "floor"}, func(*size) {}},
	{"tls", []string{"weft"}, func(s *size) { s.TLS = true }},
	{"scale", []string{"weft"}, func(s *size) { s.Sidecars *= 4 }},
	{"on-demand", []string{"weft"}, func(s *size) { s.OnDemand = true }},
	{"on-demand-tls", []string{"weft"}, func(s *size) { s.OnDemand, s.TLS = true, true }},
	{"sotw", []string{"weft"}, func(s *size) { s.Protocol = "sotw" }},
}

func roundNames() (names []string) {
	for _, r := range rounds {
		names = append(names, r.name)
	}
	return names
}

func shape(s size, change func(*size)) size {
	s.Protocol = "delta"
	change(&s)
	return s
}

// A promise is a figure that must not be exceeded (or, for ratios to the baseline, must be reached).
type promise struct {
	What     string
	Must     float64
	Hoped    float64
	Measured float64
	Unit     string
	AtLeast  bool // else at most
	Met      bool
}

func seconds(d time.Duration) float64 { return d.Seconds() }
func millis(d time.Duration) float64  { return float64(d.Microseconds()) / 1000 }
func mega(n int64) float64            { return float64(n) / (1 << 20) }

// judge puts what was promised for 1000 services x 5 endpoints and 500 proxies beside what was measured, if it was that.
func (r *report) judge() {
	find := func(round, server string) *result {
		for _, x := range r.Rounds {
			if s := x.Size; x.Name == round && s.Services == 1000 && s.Endpoints == 5 && (s.Sidecars == 500 || round == "scale" && s.Sidecars == 2000) {
				return x.Servers[server]
			}
		}
		return nil
	}
	add := func(atLeast bool, what string, must, hoped, measured float64, unit string) {
		p := promise{what, must, hoped, measured, unit, atLeast, measured <= must}
		if atLeast {
			p.Met = measured >= must
		}
		r.Promises = append(r.Promises, p)
	}
	eager, tls, scale, baseline := find("eager", "weft"), find("tls", "weft"), find("scale", "weft"), find("eager", "baseline")
	if eager != nil {
		add(false, "connect all: server CPU", 0.9, 0.5, seconds(eager.Connect.CPU), "CPU-s")
	}
	if tls != nil {
		add(false, "the same with TLS and token login", 2.0, 1.2, seconds(tls.Connect.CPU), "CPU-s")
	}
	if eager != nil {
		add(false, "server RSS after connect", 150, 100, mega(eager.RSSConnected), "MB")
		add(false, "one VirtualService change -> last of 500", 50, 25, millis(eager.Work["virtualservice"].Wall), "ms")
		add(false, "... server CPU for it", 0.05, 0.03, seconds(eager.Work["virtualservice"].CPU), "CPU-s")
		add(false, "one endpoint change -> last of 500", 30, 18, millis(eager.Work["endpoint"].Wall), "ms")
	}
	if tls != nil {
		add(false, "server memory per idle sidecar (TLS)", 130, 100, tls.PerSidecar/1024, "KB")
	}
	if eager != nil && scale != nil {
		times := func(what string, of func(*result) float64) {
			if of(eager) > 0 {
				add(false, "2,000 sidecars instead of 500: "+what, 4.3, 4.0, of(scale)/of(eager), "times")
			}
		}
		times("connect, CPU", func(r *result) float64 { return seconds(r.Connect.CPU) })
		times("RSS", func(r *result) float64 { return mega(r.RSSConnected) })
		times("VirtualService -> last", func(r *result) float64 { return millis(r.Work["virtualservice"].Wall) })
		times("VirtualService, CPU", func(r *result) float64 { return millis(r.Work["virtualservice"].CPU) })
		times("endpoint -> last", func(r *result) float64 { return millis(r.Work["endpoint"].Wall) })
	}
	if eager != nil && baseline != nil {
		ratio := func(what string, must, hoped float64, of func(*result) figure) {
			if ours := of(eager).CPU; ours > 0 {
				add(true, "baseline/weft: "+what, must, hoped, float64(of(baseline).CPU)/float64(ours), "times")
			}
		}
		ratio("connect, CPU", 25, 40, func(r *result) figure { return r.Connect })
		ratio("VirtualService, CPU", 15, 25, func(r *result) figure { return r.Work["virtualservice"] })
		ratio("endpoint, CPU", 15, 25, func(r *result) figure { return r.Work["endpoint"] })
		ratio("DestinationRule, CPU", 15, 25, func(r *result) figure { return r.Work["destinationrule"] })
	}
}
