// Package envoy measures how long it takes from a snapshot of the mesh to what proxies are told, at the size that the
// design promises figures for: 1000 services with 5 endpoints each.
//
//	go test ./bench/envoy -bench . -benchtime 20x
package envoy

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
)

const (
	namespaces = 20
	services   = 1000
	endpoints  = 5
)

func namespace(i int) string { return fmt.Sprintf("team-%02d", i%namespaces) }
func service(i int) string   { return fmt.Sprintf("svc-%04d", i) }

// slice lists the first n pods of a service.
func slice(i, n int) *discoveryv1.EndpointSlice {
	name, port, ready := "http", int32(8080), true
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: service(i) + "-1", Namespace: namespace(i),
			Labels: map[string]string{discoveryv1.LabelServiceName: service(i)},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for e := range n {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{address(i, e)},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: namespace(i), Name: podName(i, e)},
		})
	}
	return s
}

func address(i, e int) string { return fmt.Sprintf("10.%d.%d.%d", 100+i/250, i%250, e+1) }
func podName(i, e int) string { return fmt.Sprintf("%s-%d", service(i), e) }

func timeout(i int, d time.Duration) *networkingv1.VirtualService {
	return &networkingv1.VirtualService{
		ObjectMeta: metav1.ObjectMeta{Name: service(i), Namespace: namespace(i)},
		Spec: networkingapi.VirtualService{
			Hosts: []string{service(i)},
			Http: []*networkingapi.HTTPRoute{{
				Timeout: durationpb.New(d),
				Route:   []*networkingapi.HTTPRouteDestination{{Destination: &networkingapi.Destination{Host: service(i)}}},
			}},
		},
	}
}

func store() *mesh.Store {
	s := mesh.NewStore(mesh.Options{})
	for i := range services {
		s.Apply(mesh.Object{Object: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: service(i), Namespace: namespace(i)},
			Spec: corev1.ServiceSpec{
				ClusterIP:  fmt.Sprintf("10.96.%d.%d", i/250, i%250+1),
				ClusterIPs: []string{fmt.Sprintf("10.96.%d.%d", i/250, i%250+1)},
				Selector:   map[string]string{"app": service(i)},
				Ports:      []corev1.ServicePort{{Name: "http", Port: 80}},
			},
		}})
		for e := range endpoints {
			s.Apply(mesh.Object{Object: &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{
					Name: podName(i, e), Namespace: namespace(i),
					Labels:      map[string]string{"app": service(i), "version": "v1"},
					Annotations: map[string]string{"sidecar.istio.io/status": "{}"},
				},
				Spec:   corev1.PodSpec{ServiceAccountName: service(i)},
				Status: corev1.PodStatus{PodIP: address(i, e), PodIPs: []corev1.PodIP{{IP: address(i, e)}}},
			}})
		}
		s.Apply(mesh.Object{Object: slice(i, endpoints)})
	}
	return s
}

// clients is one sidecar of each namespace: all classes of clients that this mesh has.
func clients(s *mesh.Snapshot, n int) []envoy.Proxy {
	var out []envoy.Proxy
	for i := range n {
		out = append(out, envoy.Proxy{
			Kind: envoy.Sidecar, Namespace: namespace(i), Pod: podName(i, 0), ServiceAccount: service(i),
			Workload: s.Workload(namespace(i), podName(i, 0)),
		})
	}
	return out
}

func ask(w *envoy.World, clients []envoy.Proxy) (resources, bytes int) {
	seen := map[*envoy.Resource]bool{}
	for _, p := range clients {
		for _, set := range w.Sets(p) {
			for _, rs := range set.Resources {
				for _, r := range rs {
					if !seen[r] {
						seen[r] = true
						resources++
						bytes += len(r.Segment)
					}
				}
			}
		}
	}
	return resources, bytes
}

// A meter adds up the processor time of the process, garbage collection included: on a machine that does other things too, wall time says
// little.
type meter struct{ total, since time.Duration }

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (m *meter) start() { m.since = cpu() }
func (m *meter) stop()  { m.total += cpu() - m.since }

func (m *meter) report(b *testing.B) {
	b.ReportMetric(float64(m.total.Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

// BenchmarkFromNothing is a control plane that starts: everything is computed and marshaled.
func BenchmarkFromNothing(b *testing.B) {
	for _, n := range []int{1, namespaces} {
		b.Run(fmt.Sprintf("namespaces=%d", n), func(b *testing.B) {
			snapshot := store().Snapshot()
			proxies := clients(snapshot, n)
			b.ReportAllocs()
			var resources, bytes int
			var m meter
			for b.Loop() {
				m.start()
				w := envoy.NewWorld(snapshot, nil)
				for _, p := range proxies {
					w.Sets(p)
				}
				m.stop()
				b.StopTimer()
				resources, bytes = ask(w, proxies)
				b.StartTimer()
			}
			b.ReportMetric(float64(resources), "resources")
			b.ReportMetric(float64(bytes), "bytes")
			m.report(b)
		})
	}
}

// change measures what one change costs, from the next snapshot to the sets of all clients.
func change(b *testing.B, apply func(s *mesh.Store, round int)) {
	for _, n := range []int{1, namespaces} {
		b.Run(fmt.Sprintf("namespaces=%d", n), func(b *testing.B) {
			s := store()
			snapshot := s.Snapshot()
			proxies := clients(snapshot, n)
			w := envoy.NewWorld(snapshot, nil)
			ask(w, proxies)
			b.ReportAllocs()
			round := 0
			var m meter
			for b.Loop() {
				b.StopTimer()
				round++
				apply(s, round)
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
		})
	}
}

func BenchmarkOneVirtualService(b *testing.B) {
	change(b, func(s *mesh.Store, round int) { s.Apply(vs(round)) })
}

// vs is the VirtualService of a service, other in each round.
func vs(round int) mesh.Object {
	return mesh.Object{Object: timeout(7, time.Duration(round)*time.Second)}
}

func BenchmarkOneEndpoint(b *testing.B) {
	change(b, func(s *mesh.Store, round int) {
		s.Apply(mesh.Object{Object: slice(7, endpoints-round%2)})
	})
}
