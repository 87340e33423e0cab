package mesh

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func plainService(name string, selector map[string]string, ports ...corev1.ServicePort) Object {
	return Object{Object: &corev1.Service{ObjectMeta: meta("default", name), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9", Selector: selector, Ports: ports}}}
}

type member struct {
	addr                        string
	ready, serving, terminating *bool
	pod, node, zone             string
}

func endpointSlice(service, name string, family discoveryv1.AddressType, ports map[string]int32, members ...member) Object {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}}, AddressType: family}
	for n, p := range ports {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &n, Port: &p})
	}
	for _, m := range members {
		e := discoveryv1.Endpoint{Addresses: []string{m.addr}, Conditions: discoveryv1.EndpointConditions{Ready: m.ready, Serving: m.serving, Terminating: m.terminating}}
		if m.pod != "" {
			e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: m.pod}
		}
		if m.node != "" {
			e.NodeName = &m.node
		}
		if m.zone != "" {
			e.Zone = &m.zone
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return Object{Object: s}
}

func plainPod(name, ip string, labels map[string]string) Object {
	return Object{Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels}, Status: corev1.PodStatus{PodIP: ip}}}
}

func show(n *Snapshot, service string, port uint16) (out []string) {
	svc := n.Service("default", service+".default.svc.cluster.local")
	for _, e := range n.Endpoints(svc, Port{Number: port}) {
		s := fmt.Sprintf("%s:%d", e.Address, e.Port)
		if !e.Ready {
			s += "!"
		}
		if e.Workload != nil {
			s += "=" + e.Workload.Name
		}
		out = append(out, s)
	}
	return out
}

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestAllSlicesOfAServiceCountInBothFamilies(t *testing.T) {
	s := NewStore(Options{})
	http := map[string]int32{"http": 8080}
	s.Apply(plainService("a", map[string]string{"app": "a"}, corev1.ServicePort{Name: "http", Port: 80}),
		endpointSlice("a", "a-1", "IPv4", http, member{addr: "10.0.0.3"}, member{addr: "10.0.0.1"}),
		endpointSlice("a", "a-2", "IPv4", http, member{addr: "10.0.0.2"}, member{addr: "10.0.0.1"}),
		endpointSlice("a", "a-6", "IPv6", http, member{addr: "fd00::1"}),
		endpointSlice("b", "b-1", "IPv4", http, member{addr: "10.0.0.9"}))
	want(t, "endpoints", show(s.Snapshot(), "a", 80), "10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080", "fd00::1:8080")
	s.Delete(Key{"EndpointSlice", "default", "a-1"})
	want(t, "after a slice went", show(s.Snapshot(), "a", 80), "10.0.0.1:8080", "10.0.0.2:8080", "fd00::1:8080")
}

func TestEachPortHasItsOwnEndpoints(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(plainService("a", nil, corev1.ServicePort{Name: "http", Port: 80}, corev1.ServicePort{Name: "tcp", Port: 90}, corev1.ServicePort{Name: "dns", Port: 53, Protocol: "UDP"}),
		endpointSlice("a", "a-1", "IPv4", map[string]int32{"http": 8080, "tcp": 9090}, member{addr: "10.0.0.1"}),
		endpointSlice("a", "a-2", "IPv4", map[string]int32{"http": 8081}, member{addr: "10.0.0.2"}))
	n := s.Snapshot()
	want(t, "http", show(n, "a", 80), "10.0.0.1:8080", "10.0.0.2:8081")
	want(t, "tcp", show(n, "a", 90), "10.0.0.1:9090")
	if svc := n.Service("x", "a.default.svc.cluster.local"); len(svc.Ports) != 2 {
		t.Errorf("ports %v: UDP is not the mesh's", svc.Ports)
	}
}

// Kubernetes, EndpointSlice conditions: a missing "ready" means ready. KEP-1669: when no endpoint is ready, those that still serve while they terminate are used.
func TestConditionsDecideWhoGetsTraffic(t *testing.T) {
	yes, no := ptr(true), ptr(false)
	http := map[string]int32{"http": 80}
	draining := member{addr: "10.0.0.3", ready: no, serving: yes, terminating: yes}
	s := NewStore(Options{})
	s.Apply(plainService("a", nil, corev1.ServicePort{Name: "http", Port: 80}),
		endpointSlice("a", "a-1", "IPv4", http, member{addr: "10.0.0.1"}, member{addr: "10.0.0.2", ready: no}, draining))
	want(t, "some are ready", show(s.Snapshot(), "a", 80), "10.0.0.1:80", "10.0.0.2:80!", "10.0.0.3:80!")
	s.Apply(endpointSlice("a", "a-1", "IPv4", http, member{addr: "10.0.0.2", ready: no}, draining))
	want(t, "none is ready", show(s.Snapshot(), "a", 80), "10.0.0.2:80!", "10.0.0.3:80")
}

func TestPodsAndEndpointsFindEachOtherInAnyOrder(t *testing.T) {
	byRef := endpointSlice("a", "a-1", "IPv4", map[string]int32{"http": 80}, member{addr: "10.0.0.1", pod: "p"})
	byHand := endpointSlice("a", "a-1", "IPv4", map[string]int32{"http": 80}, member{addr: "10.0.0.1"})
	svc, pod := plainService("a", nil, corev1.ServicePort{Name: "http", Port: 80}), plainPod("p", "10.0.0.1", nil)
	for name, order := range map[string][]Object{"pod last": {svc, byRef, pod}, "slice last": {pod, svc, byRef}, "service last": {pod, byRef, svc},
		"by hand, pod last": {svc, byHand, pod}, "by hand, slice last": {pod, svc, byHand}} {
		s := NewStore(Options{})
		for _, o := range order {
			s.Apply(o)
			s.Snapshot()
		}
		n := s.Snapshot()
		want(t, name, show(n, "a", 80), "10.0.0.1:80=p")
		if targets := n.Targets(n.Workload("default", "p")); len(targets) != 1 || targets[0].Services[0].Name != "a" {
			t.Errorf("%s: the pod does not know its service: %+v", name, targets)
		}
		s.Delete(Key{"Pod", "default", "p"})
		want(t, name+", pod deleted", show(s.Snapshot(), "a", 80), "10.0.0.1:80")
	}
}

func TestAHostNetworkPodDoesNotAnswerForItsNodesAddress(t *testing.T) {
	s := NewStore(Options{})
	host := &corev1.Pod{ObjectMeta: meta("default", "agent"), Spec: corev1.PodSpec{HostNetwork: true}, Status: corev1.PodStatus{PodIP: "192.168.0.1"}}
	s.Apply(plainService("a", nil, corev1.ServicePort{Name: "http", Port: 80}), Object{Object: host},
		endpointSlice("a", "a-1", "IPv4", map[string]int32{"http": 80}, member{addr: "192.168.0.1"}))
	want(t, "by address", show(s.Snapshot(), "a", 80), "192.168.0.1:80")
}

func TestAFinishedPodGivesItsAddressUp(t *testing.T) {
	s := NewStore(Options{})
	done := &corev1.Pod{ObjectMeta: meta("default", "job"), Status: corev1.PodStatus{Phase: corev1.PodSucceeded, PodIP: "10.0.0.1"}}
	s.Apply(plainService("a", nil, corev1.ServicePort{Name: "http", Port: 80}), plainPod("p", "10.0.0.1", nil), Object{Object: done},
		endpointSlice("a", "a-1", "IPv4", map[string]int32{"http": 80}, member{addr: "10.0.0.1"}))
	n := s.Snapshot()
	want(t, "by address", show(n, "a", 80), "10.0.0.1:80=p")
	if n.Workload("default", "job") != nil {
		t.Error("a finished pod is a workload")
	}
}

func TestRelabellingAPodReachesItsEndpoints(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(reviews()...)
	before := s.Snapshot()
	svc := before.Service("x", "reviews.default.svc.cluster.local")
	old := before.Endpoints(svc, svc.Ports[0])
	s.Apply(plainPod("reviews-2", "10.244.0.2", map[string]string{"app": "reviews", "version": "v3"}))
	after := s.Snapshot()
	eps := after.Endpoints(svc, svc.Ports[0])
	if eps[1].Labels["version"] != "v3" || eps[1] == old[1] {
		t.Errorf("labels %v", eps[1].Labels)
	}
	if eps[0] != old[0] {
		t.Error("the other endpoint was made anew")
	}
	if !after.Changes().Has(Key{KindEndpoints, "default", svc.Host}) || after.Changes().HasKind("Service") {
		t.Errorf("changes: %v", slices.Collect(after.Changes().All()))
	}
}

func TestLocalityIsThatOfTheLabelOrTheNode(t *testing.T) {
	s := NewStore(Options{})
	node := func(zone string) Object {
		return Object{Object: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"topology.kubernetes.io/region": "r1", "topology.kubernetes.io/zone": zone, "topology.istio.io/subzone": "s"}}}}
	}
	labelled := plainPod("p", "10.0.0.1", map[string]string{"istio-locality": "us-west1.us-west1-a"})
	labelled.Object.(*corev1.Pod).Spec.NodeName = "n1"
	s.Apply(append(reviews(), labelled)...)
	n := s.Snapshot()
	if l := n.Workload("default", "reviews-1").Locality; l != (Locality{}) {
		t.Errorf("before the node is known: %v", l)
	}
	s.Apply(node("z1"))
	n = s.Snapshot()
	svc := n.Service("x", "reviews.default.svc.cluster.local")
	if e := n.Endpoints(svc, svc.Ports[0])[0]; e.Locality != (Locality{"r1", "z1", "s"}) || e.Workload.Locality != e.Locality {
		t.Errorf("of the node: %v", e.Locality)
	}
	if l := n.Workload("default", "p").Locality; l != (Locality{"us-west1", "us-west1-a", ""}) {
		t.Errorf("of the label: %v", l)
	}
	s.Apply(node("z2"))
	n = s.Snapshot()
	if l := n.Workload("default", "reviews-1").Locality.Zone; l != "z2" {
		t.Errorf("after the node moved: %v", l)
	}
	s.Apply(endpointSlice("reviews", "by-hand", "IPv4", map[string]int32{"http": 80}, member{addr: "192.0.2.1", node: "n1"}, member{addr: "192.0.2.2", zone: "z9"}))
	n = s.Snapshot()
	eps := n.Endpoints(svc, svc.Ports[0])
	if eps[2].Locality.Zone != "z2" || eps[3].Locality.Zone != "z9" {
		t.Errorf("without a pod: %v %v", eps[2].Locality, eps[3].Locality)
	}
}

func TestKindsOfServices(t *testing.T) {
	s := NewStore(Options{})
	service := func(name string, spec corev1.ServiceSpec) Object {
		return Object{Object: &corev1.Service{ObjectMeta: meta("default", name), Spec: spec}}
	}
	s.Apply(
		service("dual", corev1.ServiceSpec{ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00::1"}, Ports: []corev1.ServicePort{{Port: 443, Name: "x"}, {Port: 80, TargetPort: intstr.FromString("web")}}}),
		service("headless", corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Port: 80}}}),
		service("external", corev1.ServiceSpec{Type: "ExternalName", ExternalName: "example.com.", Ports: []corev1.ServicePort{{Port: 80}}}),
	)
	n := s.Snapshot()
	get := func(name string) *Service { return n.Service("x", name+".default.svc.cluster.local") }
	if d := get("dual"); d.Resolution != ResolutionEndpoints || len(d.Addresses) != 2 || d.Ports[0].Number != 80 || d.Ports[0].TargetName != "web" || d.Ports[1].TargetPort != 443 {
		t.Errorf("dual: %+v", d)
	}
	if h := get("headless"); h.Resolution != ResolutionHeadless || h.Addresses != nil {
		t.Errorf("headless: %+v", h)
	}
	if a := n.Alias("x", get("external")); a != nil {
		t.Errorf("example.com is an alias of %v", a.Ref)
	}
	s.Apply(service("alias", corev1.ServiceSpec{Type: "ExternalName", ExternalName: "dual.default.svc.cluster.local"}))
	n = s.Snapshot()
	if a := n.Alias("x", get("alias")); a != get("dual") {
		t.Errorf("the alias names %v", a)
	}
	if e := get("external"); e.Resolution != ResolutionDNS || e.ExternalName != "example.com" || !e.External {
		t.Errorf("external: %+v", e)
	}
}

// A Service and its slices change one after the other, in either order.
func TestAPortThatGetsAnotherNameKeepsItsEndpoints(t *testing.T) {
	port := func(name string, number int32, target int) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: number, TargetPort: intstr.FromInt(target)}
	}
	service := func(name string) Object {
		return plainService("web", map[string]string{"app": "web"}, port(name, 80, 8080), port("admin", 90, 9090))
	}
	slice := func(name string) Object {
		return endpointSlice("web", "web-1", discoveryv1.AddressTypeIPv4, map[string]int32{name: 8080, "admin": 9090}, member{addr: "10.0.0.1", ready: ptr(true)})
	}
	for name, steps := range map[string][]Object{
		"the Service first": {service("http-web"), slice("http-web")},
		"the slice first":   {slice("http-web"), service("http-web")},
	} {
		s := NewStore(Options{})
		for i, step := range append([]Object{service("http"), slice("http")}, steps...) {
			if err := s.Apply(step); err != nil {
				t.Fatal(err)
			}
			if i > 0 {
				want(t, fmt.Sprintf("%s, step %d", name, i), show(s.Snapshot(), "web", 80), "10.0.0.1:8080")
				want(t, fmt.Sprintf("%s, step %d, the other port", name, i), show(s.Snapshot(), "web", 90), "10.0.0.1:9090")
			}
		}
	}
	// A port that has nothing behind it borrows from no other.
	s := NewStore(Options{})
	if err := s.Apply(plainService("web", map[string]string{"app": "web"}, port("http", 80, 8080), port("new", 81, 8080)), slice("http")); err != nil {
		t.Fatal(err)
	}
	want(t, "a port that slices do not have yet", show(s.Snapshot(), "web", 81))
}
