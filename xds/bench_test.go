package xds

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
)

// wireless is a stream without a wire: it costs what this package costs. It confirms what it is sent.
type wireless struct {
	ctx      context.Context
	requests chan string
	sent     *atomic.Int64 // confirmed responses, of all streams
}

func (w *wireless) SetHeader(metadata.MD) error  { return nil }
func (w *wireless) SendHeader(metadata.MD) error { return nil }
func (w *wireless) SetTrailer(metadata.MD)       {}
func (w *wireless) Context() context.Context     { return w.ctx }

func (w *wireless) SendMsg(m any) error {
	info := m.(*frame).info
	ack := appendString(nil, deltaTypeField, info.typ.TypeURL())
	w.requests <- string(appendString(ack, deltaNonceField, info.nonce))
	return nil
}

func (w *wireless) RecvMsg(m any) error {
	select {
	case data := <-w.requests:
		if len(data) < 200 {
			w.sent.Add(1)
		}
		m.(*request).unread = data
		return nil
	case <-w.ctx.Done():
		return io.EOF
	}
}

func mustMarshal(b testing.TB, m proto.Message) string {
	data, err := proto.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	return string(data)
}

// manyServices is a scope of n services on one port.
func manyServices(n int) []*envoy.Resource {
	list := []*envoy.Resource{res(envoy.Listener, "l", "1"), res(envoy.Route, "80", "vhds")}
	for i := range n {
		name := fmt.Sprintf("outbound|80||svc-%04d.default.svc.cluster.local", i)
		list = append(list, res(envoy.Cluster, name, "1"), res(envoy.Endpoints, name, "1"), res(envoy.VirtualHost, fmt.Sprintf("80/svc-%04d.default.svc.cluster.local", i), "1"))
	}
	return list
}

// crowd connects streams to a server, and returns what waits until each of them has confirmed n more responses.
func crowd(b *testing.B, s *Server, m *fakeMesh, streams int) (confirmed func(n int)) {
	b.Helper()
	var sent atomic.Int64
	var names []string
	for _, r := range m.sets[0].Resources[envoy.Endpoints] {
		names = append(names, r.Name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ctx = peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}})
	var group sync.WaitGroup
	b.Cleanup(func() { cancel(); s.Stop(); group.Wait() })
	requests := []string{
		mustMarshal(b, &discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Endpoints.TypeURL(), ResourceNamesSubscribe: names}),
		mustMarshal(b, &discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Listener.TypeURL()}),
		mustMarshal(b, &discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Route.TypeURL(), ResourceNamesSubscribe: []string{"80"}}),
		mustMarshal(b, &discovery.DeltaDiscoveryRequest{TypeUrl: envoy.VirtualHost.TypeURL()}),
	}
	want := int64(0)
	for i := range streams {
		w := &wireless{ctx: ctx, requests: make(chan string, 32), sent: &sent}
		w.requests <- mustMarshal(b, &discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Cluster.TypeURL(), Node: &core.Node{Id: fmt.Sprintf("sidecar~10.0.0.1~pod-%d.default~x", i)}})
		for _, r := range requests {
			w.requests <- r
		}
		group.Go(func() { s.serve(w, true) })
	}
	confirmed = func(n int) {
		for want += int64(n * streams); sent.Load() < want; {
			time.Sleep(50 * time.Microsecond)
		}
	}
	for len(s.connected()) < streams {
		time.Sleep(time.Millisecond)
	}
	settled := func() bool {
		for _, ses := range s.connected() {
			if c := ses.describe(); len(c.Subscriptions) < 5 || len(c.InFlight) > 0 {
				return false
			}
		}
		return true
	}
	for !settled() {
		time.Sleep(time.Millisecond)
	}
	want = sent.Load()
	return confirmed
}

// cpuTime is what this process has used, which other processes change less than the time that passes.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkChange is what one change costs beside the wire: per stream, by resources that change.
func BenchmarkChange(b *testing.B) {
	const streams = 500
	for name, change := range map[string][]*envoy.Resource{
		"endpoints":    {res(envoy.Endpoints, "outbound|80||svc-0007.default.svc.cluster.local", "2")},
		"virtual host": {res(envoy.VirtualHost, "80/svc-0007.default.svc.cluster.local", "2")},
	} {
		b.Run(name, func(b *testing.B) {
			m := &fakeMesh{pods: make(map[string]*mesh.Workload)}
			for i := range streams {
				m.pods[fmt.Sprintf("default/pod-%d", i)] = pod(fmt.Sprintf("pod-%d", i), "")
			}
			all := manyServices(1000)
			states := [2]*envoy.Set{set("s", 1, all...), nil}
			for i, r := range all {
				if r.Type == change[0].Type && r.Name == change[0].Name {
					all[i] = change[0]
				}
			}
			states[1] = set("s", 2, all...)
			m.sets = states[:1]
			s := NewServer(Config{Log: slog.New(slog.DiscardHandler)})
			s.Publish(m, time.Now())
			confirmed := crowd(b, s, m, streams)
			b.ReportAllocs()
			b.ResetTimer()
			before := cpuTime(b)
			for i := range b.N {
				s.Publish(m.with(states[(i+1)%2]), time.Now())
				confirmed(1)
			}
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N)/streams, "cpu-ns/stream")
		})
	}
}

// BenchmarkDecode is what reading a request costs: the first one for endpoints, of 1000 names, and one of a proxy that connects again.
func BenchmarkDecode(b *testing.B) {
	first, again := &discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Endpoints.TypeURL()}, &discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Endpoints.TypeURL(), InitialResourceVersions: make(map[string]string)}
	for i := range 1000 {
		name := fmt.Sprintf("outbound|80||svc-%04d.default.svc.cluster.local", i)
		first.ResourceNamesSubscribe = append(first.ResourceNamesSubscribe, name)
		again.InitialResourceVersions[name] = "0123456789abcdef"
	}
	again.ResourceNamesSubscribe = first.ResourceNamesSubscribe
	for name, m := range map[string]proto.Message{"subscribe": first, "reconnect": again} {
		data := mustMarshal(b, m)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if err := (&request{delta: true}).decode(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDifference is what finding out what changed costs, once for all streams of a scope.
func BenchmarkDifference(b *testing.B) {
	all := manyServices(1000)
	from := set("s", 1, all...)
	all[3] = res(all[3].Type, all[3].Name, "2")
	to := set("s", 2, all...)
	b.ReportAllocs()
	for b.Loop() {
		c := new(change)
		for t := range envoy.NumTypes {
			c.compute(changeKey{from, to, t, false})
		}
	}
}
