package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// figure is what one piece of work cost. Durations are in nanoseconds.
type figure struct {
	CPU            time.Duration // of the server: the median
	CPUMin, CPUMax time.Duration
	Wall           time.Duration // from the change until the last proxy had it: the median
	Messages       int64
	Bytes          int64
	Proxies        time.Duration // CPU of all proxies, which share the machine
}

// result is one server's.
type result struct {
	RSSBefore    int64 // with nobody connected, after a collection
	RSSConnected int64 // as it is when the last one has connected
	RSS          int64 // after a collection
	Peak         int64
	// PerSidecar is the memory of one idle proxy more: bytes. What all share is not in it.
	PerSidecar      float64
	BytesPerSidecar int64
	Connect         figure
	Work            map[string]figure
	Staying         *staying `json:",omitempty"`
}

// works are the changes that are measured, in their order.
var works = []string{"endpoint", "virtualservice", "elsewhere", "destinationrule", "peerauthentication", "rollout", "churn", "storm"}

// measurement is of one server in one round.
type measurement struct {
	size
	options
	server string
	dir    string
	weft   *result // of the round, when server is another one

	serving, crowd *process
	setup          string // file
}

func (m *measurement) run() (*result, error) {
	r := &result{Work: map[string]figure{}}
	// Memory for one more is the difference between two crowds.
	few := 0
	var little int64
	if m.server == "weft" && m.Sidecars >= 5*m.Namespaces {
		few = m.Sidecars / 5
		part := *m
		part.Sidecars = few
		got := &result{}
		if _, err := part.connect(got, "few"); err != nil {
			return nil, err
		}
		part.end()
		little = got.RSS - got.RSSBefore
	}
	var all []figure
	for n := range max(m.repeat, 1) {
		if n > 0 {
			m.end()
		}
		f, err := m.connect(r, fmt.Sprint(n))
		if err != nil {
			m.end()
			return nil, err
		}
		all = append(all, f)
	}
	defer m.end()
	r.Connect = median(all)
	r.BytesPerSidecar = r.Connect.Bytes / int64(m.Sidecars)
	r.PerSidecar = float64(r.RSS-r.RSSBefore) / float64(m.Sidecars)
	if few > 0 {
		r.PerSidecar = float64(r.RSS-r.RSSBefore-little) / float64(m.Sidecars-few)
	}
	for _, work := range works {
		times := m.times(work)
		if times == 0 {
			continue
		}
		var all []figure
		if err := m.profiled(work, "profile "+m.profile); err != nil {
			return nil, err
		}
		// The first change of a resource makes it; it changes from then on.
		if work != "rollout" && work != "churn" && work != "storm" {
			if _, err := m.once(work); err != nil {
				return nil, fmt.Errorf("%s: %w", work, err)
			}
		}
		for range times {
			f, err := m.once(work)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", work, err)
			}
			all = append(all, f)
		}
		if err := m.profiled(work, "profiled"); err != nil {
			return nil, err
		}
		r.Work[work] = median(all)
	}
	if m.server == "weft" && m.Protocol == "delta" {
		var err error
		if r.Staying, err = m.stay(); err != nil {
			return nil, fmt.Errorf("those who stay: %w", err)
		}
	}
	return r, nil
}

// times is how often a work is done in this round.
func (m *measurement) times(work string) int {
	switch {
	case m.server == "floor" && work != "endpoint" && work != "virtualservice":
		return 0
	case m.server == "baseline" && !slices.Contains([]string{"endpoint", "virtualservice", "destinationrule"}, work):
		return 0
	case work == "elsewhere" && !m.OnDemand:
		return 0
	case work == "storm" && m.Protocol != "delta":
		return 0 // the state of the world is sent whole
	case work == "rollout" || work == "churn":
		return 1
	case work == "storm":
		return max(m.repeat, 1)
	}
	return max(m.changes, 1)
}

// connect starts a server and lets all proxies connect.
func (m *measurement) connect(r *result, attempt string) (figure, error) {
	file := filepath.Join(m.dir, attempt+".json")
	m.setup = file
	if m.server == "floor" {
		// As much as weft sent.
		if err := (&setup{Size: m.size, Bytes: int(m.weft.BytesPerSidecar)}).write(file); err != nil {
			return figure{}, err
		}
	}
	var err error
	if m.serving, err = start(m.size, m.server, file); err != nil {
		return figure{}, err
	}
	var before usage
	if err := m.serving.ask(&before, "tidy"); err != nil {
		return figure{}, err
	}
	r.RSSBefore = before.RSS
	if m.crowd, err = start(m.size, "crowd", file); err != nil {
		return figure{}, err
	}
	var idle heard
	if err := m.crowd.ask(&idle, "mark"); err != nil {
		return figure{}, err
	}
	if err := m.profiled("connect", "profile "+m.profile); err != nil {
		return figure{}, err
	}
	f, after, err := m.between("usage", idle, "connect")
	if err != nil {
		return figure{}, err
	}
	if err := m.profiled("connect", "profiled"); err != nil {
		return figure{}, err
	}
	r.Peak, r.RSSConnected = after.Max, after.RSS
	if err := m.serving.ask(&after, "tidy"); err != nil {
		return figure{}, err
	}
	r.RSS = after.RSS
	return f, nil
}

// between tells the server to work, lets the proxies hear of it, and gives the difference and what the server has used in the end. idle is what
// the proxies had used before.
func (m *measurement) between(work string, idle heard, hear string) (figure, usage, error) {
	var before, after usage
	var h heard
	if err := m.serving.ask(&before, work); err != nil {
		return figure{}, after, err
	}
	if err := m.crowd.ask(&h, hear); err != nil {
		return figure{}, after, err
	}
	if err := m.serving.ask(&after, "usage"); err != nil {
		return figure{}, after, err
	}
	cpu := after.CPU - before.CPU
	f := figure{CPU: cpu, CPUMin: cpu, CPUMax: cpu, Messages: h.Messages, Bytes: h.Bytes, Proxies: h.CPU - idle.CPU}
	if h.Messages > 0 {
		f.Wall = time.Duration(h.Last - before.At)
	}
	return f, after, nil
}

// profiled begins or ends a CPU profile if this is the work to look at.
func (m *measurement) profiled(work, line string) error {
	if m.profile == "" || m.server != "weft" || work != m.options.profiled {
		return nil
	}
	return m.serving.ask(&usage{}, line)
}

func (m *measurement) end() {
	for _, p := range []*process{m.crowd, m.serving} {
		if p != nil {
			p.end()
		}
	}
	m.crowd, m.serving = nil, nil
}

// once does a work and waits until all proxies that it concerns have heard of it.
func (m *measurement) once(work string) (figure, error) {
	var idle heard
	if work == "storm" {
		// Everybody connects again at once, and tells what he has. That the server notices that they are gone is not measured.
		if err := m.desert(&idle, 0); err != nil {
			return figure{}, err
		}
		f, _, err := m.between("usage", idle, "connect")
		return f, err
	}
	if err := m.crowd.ask(&idle, "mark"); err != nil {
		return figure{}, err
	}
	verb, concerned := work, m.Sidecars
	switch {
	case m.server == "floor":
		of := m.weft.Work[work]
		if of.Messages == 0 {
			return figure{}, nil
		}
		verb = fmt.Sprintf("push %d", of.Bytes/of.Messages)
	case work == "churn":
		verb = fmt.Sprintf("churn %d", max(1, int(m.Churn/(100*time.Millisecond))))
		if m.OnDemand {
			concerned = 0 // some use it, most do not
		}
	case work == "elsewhere":
		concerned = 0
	}
	f, _, err := m.between(verb, idle, fmt.Sprintf("settle %d", concerned))
	return f, err
}

// desert lets the crowd hang up, and waits until the server has so many connections left.
func (m *measurement) desert(idle *heard, left int) error {
	if err := m.crowd.ask(idle, "disconnect"); err != nil {
		return err
	}
	return m.serving.ask(&usage{}, fmt.Sprintf("deserted %d", left))
}

// median takes the median of each value by itself.
func median(all []figure) figure {
	out := all[len(all)-1]
	of := func(value func(figure) time.Duration) []time.Duration {
		var list []time.Duration
		for _, f := range all {
			list = append(list, value(f))
		}
		slices.Sort(list)
		return list
	}
	cpu := of(func(f figure) time.Duration { return f.CPU })
	out.CPU, out.CPUMin, out.CPUMax = cpu[len(cpu)/2], cpu[0], cpu[len(cpu)-1]
	wall := of(func(f figure) time.Duration { return f.Wall })
	out.Wall = wall[len(wall)/2]
	return out
}
