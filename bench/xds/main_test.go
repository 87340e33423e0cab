package main

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// The processes of a measurement are this program again.
func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestAllRoundsAreMeasured(t *testing.T) {
	s := size{Services: firstOwn + 20, Endpoints: 2, Namespaces: 2, Sidecars: 6, Staying: 2, Churn: 200 * time.Millisecond, Quiet: 50 * time.Millisecond}
	o := options{repeat: 1, changes: 1}
	for _, kind := range rounds {
		t.Run(kind.name, func(t *testing.T) {
			r := &round{Name: kind.name, Size: shape(s, kind.change), Servers: map[string]*result{}}
			for _, server := range kind.servers {
				m := &measurement{size: r.Size, options: o, server: server, dir: t.TempDir(), weft: r.Servers["weft"]}
				got, err := m.run()
				if err != nil {
					t.Fatalf("%s: %v", server, err)
				}
				r.Servers[server], r.order = got, append(r.order, server)
				if got.Connect.CPU <= 0 || got.Connect.Messages < int64(r.Size.Sidecars) || got.BytesPerSidecar == 0 {
					t.Errorf("%s: connecting cost %+v", server, got.Connect)
				}
				if s := got.Staying; (s != nil) != (server == "weft" && r.Size.Protocol == "delta") {
					t.Errorf("%s: those who stay: %+v", server, s)
				} else if s != nil {
					for _, d := range []during{s.Alone, s.Storm, s.Crowded} {
						if d.Endpoint.Count == 0 || d.Endpoint.Count%r.Size.Staying != 0 || d.Endpoint.Median <= 0 || d.Ready.Count == 0 || d.Ready.Max < d.Ready.Median {
							t.Errorf("%s: those who stay: %+v", server, d)
						}
					}
				}
				for work, f := range got.Work {
					// What a proxy does not use is not told to it; who has everything hears of everything.
					if heard := f.Messages > 0; heard == (work == "elsewhere") {
						t.Errorf("%s: %s: %d messages", server, work, f.Messages)
					}
				}
			}
			if weft, floor := r.Servers["weft"], r.Servers["floor"]; floor != nil && floor.Connect.Bytes < weft.Connect.Bytes*9/10 {
				t.Errorf("the floor sent %d bytes, weft %d", floor.Connect.Bytes, weft.Connect.Bytes)
			}
			var out bytes.Buffer
			all := report{Rounds: []*round{r}}
			if err := all.print(&out); err != nil || !strings.Contains(out.String(), "bytes per sidecar") {
				t.Errorf("%v, printed:\n%s", err, &out)
			}
		})
	}
}

func TestWhatWasPromisedIsJudged(t *testing.T) {
	weft := func(cpu time.Duration) *result {
		f := figure{CPU: cpu, Wall: 20 * time.Millisecond}
		return &result{Connect: f, RSSConnected: 90 << 20, PerSidecar: 120 << 10, Work: map[string]figure{"virtualservice": f, "endpoint": f, "destinationrule": f}}
	}
	s := size{Services: 1000, Endpoints: 5, Sidecars: 500}
	four := s
	four.Sidecars *= 4
	r := report{Rounds: []*round{
		{Name: "eager", Size: s, Servers: map[string]*result{"weft": weft(40 * time.Millisecond), "baseline": weft(time.Second)}},
		{Name: "tls", Size: s, Servers: map[string]*result{"weft": weft(3 * time.Second)}},
		{Name: "scale", Size: four, Servers: map[string]*result{"weft": weft(200 * time.Millisecond)}},
	}}
	r.judge()
	var missed []string
	for _, p := range r.Promises {
		if !p.Met {
			missed = append(missed, p.What)
		}
	}
	want := []string{"the same with TLS and token login", "2,000 sidecars instead of 500: connect, CPU", "2,000 sidecars instead of 500: VirtualService, CPU"}
	if !slices.Equal(missed, want) {
		t.Errorf("missed %q, want %q", missed, want)
	}
	r = report{Rounds: []*round{{Name: "eager", Size: size{Services: 10, Sidecars: 500}, Servers: map[string]*result{"weft": weft(0)}}}}
	if r.judge(); len(r.Promises) > 0 {
		t.Errorf("another mesh was judged: %v", r.Promises)
	}
}

// A response comes in pieces of any size.
func TestResponsesAreReadInPieces(t *testing.T) {
	resource := appendString(appendString(appendString(appendString(nil, 3, "a"), 1, "v1"), 4, "alias"), 2, strings.Repeat("x", 300))
	body := appendString(appendString(appendString(appendString(nil, 4, "type"), 2, string(resource)), 5, "n1"), 6, "gone")
	stream := append([]byte{0, 0, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	stream = append(stream, stream...)
	for piece := 1; piece <= len(stream); piece++ {
		var got []message
		p := parser{wanted: true, done: func(m *message) error { got = append(got, *m); return nil }}
		for chunk := range slices.Chunk(stream, piece) {
			if err := p.write(chunk); err != nil {
				t.Fatal(err)
			}
		}
		if len(got) != 2 {
			t.Fatalf("in pieces of %d: %d messages", piece, len(got))
		}
		for _, m := range got {
			if m.size != len(body) || m.typeURL != "type" || m.nonce != "n1" || !slices.Equal(m.removed, []string{"gone"}) || len(m.resources) != 1 ||
				m.resources[0].name != "a" || m.resources[0].version != "v1" || !slices.Equal(m.resources[0].aliases, []string{"alias"}) {
				t.Fatalf("in pieces of %d: %+v", piece, m)
			}
		}
	}
}
