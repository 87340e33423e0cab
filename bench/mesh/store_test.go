package mesh

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-mesh/weft/mesh"
)

const (
	services  = 1000
	endpoints = 5
	perSpace  = 50 // services in a namespace
)

func space(i int) string { return "ns-" + strconv.Itoa(i/perSpace) }
func name(i int) string  { return "svc-" + strconv.Itoa(i) }
func address(i, j int) string {
	n := i*endpoints + j
	return fmt.Sprintf("10.%d.%d.%d", 1+n>>16, n>>8&255, n&255)
}
func podName(i, j int) string { return fmt.Sprintf("%s-%d", name(i), j) }

func service(i int) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: space(i), Name: name(i), Labels: map[string]string{"app": name(i)}},
		Spec: corev1.ServiceSpec{
			ClusterIP: fmt.Sprintf("10.96.%d.%d", i>>8, i&255), Selector: map[string]string{"app": name(i)},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
}

func pod(i, j int, version string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: space(i), Name: podName(i, j),
			Labels:      map[string]string{"app": name(i), "version": version, "pod-template-hash": "5d4f8c7b9", "security.istio.io/tlsMode": "istio"},
			Annotations: map[string]string{"sidecar.istio.io/status": "{}"}},
		Spec: corev1.PodSpec{NodeName: "node-" + strconv.Itoa(j), ServiceAccountName: name(i),
			Containers: []corev1.Container{{Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address(i, j)},
	}
}

func slice(i, n int) *discoveryv1.EndpointSlice {
	port, portName, yes := int32(8080), "http", true
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: space(i), Name: name(i) + "-abcde", Labels: map[string]string{discoveryv1.LabelServiceName: name(i)}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
	for j := range n {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{address(i, j)}, Conditions: discoveryv1.EndpointConditions{Ready: &yes},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: space(i), Name: podName(i, j)},
		})
	}
	return s
}

func rule(i int, weight int32) *networkingv1.VirtualService {
	return &networkingv1.VirtualService{
		ObjectMeta: metav1.ObjectMeta{Namespace: space(i), Name: name(i)},
		Spec: networking.VirtualService{Hosts: []string{name(i)}, Http: []*networking.HTTPRoute{{Route: []*networking.HTTPRouteDestination{
			{Destination: &networking.Destination{Host: name(i), Subset: "v1"}, Weight: weight},
			{Destination: &networking.Destination{Host: name(i), Subset: "v2"}, Weight: 100 - weight},
		}}}},
	}
}

func everything() []mesh.Object {
	var out []mesh.Object
	for i := range services {
		out = append(out, mesh.Object{Object: service(i)}, mesh.Object{Object: slice(i, endpoints)}, mesh.Object{Object: rule(i, 90)})
		for j := range endpoints {
			out = append(out, mesh.Object{Object: pod(i, j, "v1")})
		}
	}
	return out
}

func filled(b *testing.B) *mesh.Store {
	b.Helper()
	s := mesh.NewStore(mesh.Options{})
	if err := s.Apply(everything()...); err != nil {
		b.Fatal(err)
	}
	s.Snapshot()
	return s
}

// change measures one object's way into the next snapshot; what alternates between two values. The goal is for a quiet machine.
func change(b *testing.B, goal time.Duration, what func(odd bool) mesh.Object) {
	s := filled(b)
	b.ReportAllocs()
	defer beside(b, goal)
	odd := false
	for b.Loop() {
		odd = !odd
		if err := s.Apply(what(odd)); err != nil {
			b.Fatal(err)
		}
		s.Snapshot()
	}
}

// beside prints a goal next to what was measured.
func beside(b *testing.B, goal time.Duration) {
	b.Helper()
	b.ReportMetric(float64(goal.Nanoseconds()), "goal-ns/op")
}

func BenchmarkEverythingAtOnce(b *testing.B) {
	all := everything()
	b.ReportAllocs()
	defer beside(b, 150*time.Millisecond)
	for b.Loop() {
		s := mesh.NewStore(mesh.Options{})
		if err := s.Apply(all...); err != nil {
			b.Fatal(err)
		}
		s.Snapshot()
	}
}

func BenchmarkOneEndpointComesAndGoes(b *testing.B) {
	change(b, 30*time.Microsecond, func(odd bool) mesh.Object {
		if odd {
			return mesh.Object{Object: slice(500, endpoints-1)}
		}
		return mesh.Object{Object: slice(500, endpoints)}
	})
}

func BenchmarkOnePodIsRelabelled(b *testing.B) {
	change(b, 100*time.Microsecond, func(odd bool) mesh.Object {
		if odd {
			return mesh.Object{Object: pod(500, 1, "v2")}
		}
		return mesh.Object{Object: pod(500, 1, "v1")}
	})
}

func BenchmarkOneVirtualServiceChanges(b *testing.B) {
	change(b, 500*time.Microsecond, func(odd bool) mesh.Object {
		if odd {
			return mesh.Object{Object: rule(500, 50)}
		}
		return mesh.Object{Object: rule(500, 90)}
	})
}

func BenchmarkOneServiceChanges(b *testing.B) {
	change(b, 500*time.Microsecond, func(odd bool) mesh.Object {
		s := service(500)
		if odd {
			s.Spec.Ports[0].Name = "grpc"
		}
		return mesh.Object{Object: s}
	})
}

func BenchmarkNothingChanges(b *testing.B) {
	change(b, 20*time.Microsecond, func(bool) mesh.Object { return mesh.Object{Object: pod(500, 1, "v1")} })
}

func BenchmarkLookups(b *testing.B) {
	s := filled(b).Snapshot()
	svc := s.Service("ns-1", "svc-500.ns-10.svc.cluster.local")
	w := s.Workload("ns-10", "svc-500-1")
	if svc == nil || w == nil {
		b.Fatal("not found")
	}
	b.Run("Service", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Service("ns-1", "svc-500.ns-10.svc.cluster.local")
		}
	})
	b.Run("Endpoints", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Endpoints(svc, svc.Ports[0])
		}
	})
	b.Run("Targets", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Targets(w)
		}
	})
	b.Run("VirtualServicesFor", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.VirtualServicesFor("ns-1", "mesh", svc.Host)
		}
	})
	b.Run("DestinationRule", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.DestinationRule("ns-1", svc)
		}
	})
	b.Run("ServerMTLS", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.ServerMTLS(w, 8080)
		}
	})
}
