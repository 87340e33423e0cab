package envoy

import (
	"fmt"
	"testing"

	"github.com/weft-mesh/weft/envoy"
)

// asking is one proxy whose workload has asked for n services.
func asking(p envoy.Proxy, n int) envoy.Proxy {
	p.Demand = &envoy.Demand{Workload: p.Namespace + "/" + p.ServiceAccount}
	for i := range n {
		p.Demand = p.Demand.With(envoy.VirtualHost, fmt.Sprintf("80/%s.%s", service(i), namespace(i)))
	}
	return p
}

// BenchmarkDemandGrows is what one first request costs the control plane, from a larger Demand to the Set and the answer in it.
func BenchmarkDemandGrows(b *testing.B) {
	for _, used := range []int{3, 200} {
		b.Run(fmt.Sprintf("used=%d", used), func(b *testing.B) {
			snapshot := store().Snapshot()
			w := envoy.NewWorld(snapshot, nil)
			p := asking(clients(snapshot, 1)[0], used)
			before := p.Demand
			w.Sets(p)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				name := fmt.Sprintf("80/%s.%s", service(used+i%(services-used)), namespace(used+i%(services-used)))
				p.Demand = before.With(envoy.VirtualHost, name)
				if w.Means(p, envoy.VirtualHost, name) != envoy.Known || w.Resolve(p, envoy.VirtualHost, name) == nil {
					b.Fatalf("nobody has %s", name)
				}
			}
		})
	}
}

// BenchmarkOneVirtualServiceOnDemand is one change for sidecars of as many workloads as the mesh has services, each of which uses three.
func BenchmarkOneVirtualServiceOnDemand(b *testing.B) {
	s := store()
	snapshot := s.Snapshot()
	proxies := clients(snapshot, services)
	for i := range proxies {
		proxies[i] = asking(proxies[i], 3)
	}
	w := envoy.NewWorld(snapshot, nil)
	ask(w, proxies)
	b.ReportAllocs()
	round := 0
	var m meter
	for b.Loop() {
		b.StopTimer()
		round++
		s.Apply(vs(round))
		next := s.Snapshot()
		b.StartTimer()
		m.start()
		w = envoy.NewWorld(next, w)
		for _, p := range proxies {
			w.Sets(p)
		}
		m.stop()
	}
	m.report(b)
}
