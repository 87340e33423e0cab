package main

import (
	"strconv"
	"testing"
	"time"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect"
)

// BenchmarkADD is the command's measurement, for `make bench`: one operation is one ADD, a whole process.
func BenchmarkADD(b *testing.B) {
	kit.Root(b)
	plugin := kit.Program(b, "weft-cni")
	for _, c := range []struct{ name, annotation string }{{"injected", redirect.Default().Encode()}, {"not-injected", ""}} {
		b.Run(c.name, func(b *testing.B) {
			pass := benchmark{plugin: plugin, dir: b.TempDir()}
			n := max(100, min(b.N, 500))
			walls, err := pass.measure(n, c.annotation)
			if err != nil {
				b.Fatal(err)
			}
			rss, err := pass.peakRSS(c.annotation)
			if err != nil {
				b.Fatal(err)
			}
			children, connections, err := pass.trace(c.annotation)
			if err != nil {
				b.Fatal(err)
			}
			ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
			b.ReportMetric(0, "ns/op") // the loop's own time says nothing
			b.ReportMetric(ms(walls[n/2]), "p50-ms(goal<10)")
			b.ReportMetric(ms(walls[n*95/100]), "p95-ms")
			b.ReportMetric(float64(rss)/(1<<20), "peak-RSS-MB(goal<12)")
			for _, m := range []struct{ count, unit string }{{children, "children(goal=0)"}, {connections, "connections(goal=0)"}} {
				if v, err := strconv.Atoi(m.count); err == nil { // it is words when strace is missing
					b.ReportMetric(float64(v), m.unit)
				}
			}
		})
	}
}
