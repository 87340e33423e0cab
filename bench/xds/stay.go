package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// staying is what proxies that are there, and a probe, notice of thousands that come.
type staying struct{ Alone, Storm, Crowded during }

// during is what was noticed in one situation.
type during struct {
	Endpoint latency       // from a change until one of the proxies had it, for each change and proxy
	Ready    latency       // of the readiness probe
	Wall     time.Duration // how long the situation was watched
}

// latency is the distribution of a time.
type latency struct {
	Count            int
	Median, P95, Max time.Duration
}

func distribution(all []time.Duration) (l latency) {
	if l.Count = len(all); l.Count > 0 {
		slices.Sort(all)
		l.Median, l.P95, l.Max = all[l.Count/2], all[l.Count*95/100], all[l.Count-1]
	}
	return l
}

func (l latency) String() string {
	return fmt.Sprintf("%s, %s, %s", ms(l.Median), ms(l.P95), ms(l.Max))
}

const (
	// changePause is between two changes. One begins when all have got the one before.
	changePause = 200 * time.Millisecond
	probePause  = 20 * time.Millisecond
	// calm is how many changes are made where nothing ends the situation, for each of -changes.
	calm = 4
)

// stay connects further proxies, and measures how soon they hear of a changed endpoint and how soon the server answers a probe:
// before the crowd comes back, while it does, and then.
func (m *measurement) stay() (*staying, error) {
	to, err := readSetup(m.setup)
	if err != nil {
		return nil, err
	}
	stayers, err := start(m.size, "staying", m.setup)
	if err != nil {
		return nil, err
	}
	defer stayers.end()
	var h heard
	if err := stayers.ask(&h, "connect"); err != nil {
		return nil, err
	}
	// The others would be on other machines.
	if err := m.crowd.ask(&h, "yield"); err != nil {
		return nil, err
	}
	out := &staying{}
	var alone, storm, crowded observations
	for range max(m.repeat, 1) {
		if err := m.desert(&h, m.Staying); err != nil {
			return nil, err
		}
		if err := m.watch(&alone, stayers, to.Ready, nil); err != nil {
			return nil, err
		}
		connected := make(chan error, 1)
		go func() { connected <- m.crowd.ask(&heard{}, "connect") }()
		if err := m.watch(&storm, stayers, to.Ready, connected); err != nil {
			return nil, err
		}
		if err := m.watch(&crowded, stayers, to.Ready, nil); err != nil {
			return nil, err
		}
	}
	out.Alone, out.Storm, out.Crowded = alone.during(max(m.repeat, 1)), storm.during(max(m.repeat, 1)), crowded.during(max(m.repeat, 1))
	return out, nil
}

// observations are all that was noticed in one situation, which may have come several times.
type observations struct {
	endpoint, ready []time.Duration
	wall            time.Duration
}

func (o *observations) during(times int) during {
	return during{distribution(o.endpoint), distribution(o.ready), o.wall / time.Duration(times)}
}

// watch makes changes and asks whether the server is ready until over gives something, or, if it is nil, for a number of changes.
func (m *measurement) watch(o *observations, stayers *process, ready string, over <-chan error) error {
	begun := time.Now()
	stop, probed := make(chan struct{}), make(chan error, 1)
	go func() { probed <- probe(&o.ready, ready, stop) }()
	err := m.tell(o, stayers, over)
	o.wall += time.Since(begun)
	close(stop)
	return errors.Join(err, <-probed)
}

func (m *measurement) tell(o *observations, stayers *process, over <-chan error) error {
	pause := time.NewTicker(changePause)
	defer pause.Stop()
	for n := 0; over != nil || n < calm*max(m.options.changes, 1); n++ {
		var h heard
		var before usage
		if err := stayers.ask(&h, "mark"); err != nil {
			return err
		}
		if err := m.serving.ask(&before, "endpoint"); err != nil {
			return err
		}
		if err := stayers.ask(&h, "heard"); err != nil {
			return err
		}
		for _, at := range h.Arrivals {
			o.endpoint = append(o.endpoint, time.Duration(at-before.At))
		}
		select {
		case err := <-over:
			return err
		case <-pause.C:
		}
	}
	return nil
}

// probe asks as kubelet does, on a new connection each time, until stop is closed.
func probe(into *[]time.Duration, address string, stop <-chan struct{}) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	pause := time.NewTicker(probePause)
	defer pause.Stop()
	for {
		begun := time.Now()
		r, err := client.Get("http://" + address)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != http.StatusOK {
			return errors.Join(err, fmt.Errorf("readiness: %s", r.Status))
		}
		*into = append(*into, time.Since(begun))
		select {
		case <-stop:
			return nil
		case <-pause.C:
		}
	}
}
