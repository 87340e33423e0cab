package mesh

import (
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func entry(ns, name string, hosts ...string) *networkingv1.ServiceEntry {
	return &networkingv1.ServiceEntry{ObjectMeta: meta(ns, name), Spec: networking.ServiceEntry{
		Hosts: hosts, Ports: []*networking.ServicePort{{Number: 443, Name: "tls", Protocol: "TLS"}},
		Resolution: networking.ServiceEntry_DNS,
	}}
}

func TestEachHostOfAServiceEntryIsAService(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(objects(entry("a", "ext", "one.example.com", "two.example.com"))...)
	n := s.Snapshot()
	svc := n.Service("b", "two.example.com")
	if svc == nil || !svc.External || svc.Resolution != ResolutionDNS || svc.ExternalName != "two.example.com" || svc.Ports[0].Protocol != ProtocolTLS {
		t.Fatalf("got %+v", svc)
	}
	s.Apply(objects(entry("a", "ext", "one.example.com"))...)
	n = s.Snapshot()
	if n.Service("b", "two.example.com") != nil || n.Service("b", "one.example.com") == nil {
		t.Error("the hosts did not follow the object")
	}
	s.Delete(Key{"ServiceEntry", "a", "ext"})
	if n := s.Snapshot(); len(n.VisibleServices("b")) != 0 {
		t.Error("the services outlived the object")
	}
}

func TestStaticServiceEntriesHaveTheEndpointsTheyList(t *testing.T) {
	s := NewStore(Options{})
	e := entry("a", "db", "db.internal")
	e.Spec.Resolution, e.Spec.Location = networking.ServiceEntry_STATIC, networking.ServiceEntry_MESH_INTERNAL
	e.Spec.Addresses = []string{"192.0.2.1", "192.0.2.2/32", "198.51.100.0/24"}
	e.Spec.Endpoints = []*networking.WorkloadEntry{
		{Address: "10.9.0.2", Ports: map[string]uint32{"tls": 8443}, Weight: 3, Locality: "r/z/s", Labels: map[string]string{"security.istio.io/tlsMode": "istio"}},
		{Address: "10.9.0.1"},
	}
	s.Apply(objects(e)...)
	n := s.Snapshot()
	svc := n.Service("b", "db.internal")
	if len(svc.Addresses) != 2 || svc.External || len(n.Problems()) != 1 {
		t.Errorf("addresses %v, external %v, problems %v", svc.Addresses, svc.External, n.Problems())
	}
	eps := n.Endpoints(svc, svc.Ports[0])
	if len(eps) != 2 || eps[0].Port != 443 || eps[0].MeshTLS() || eps[1].Port != 8443 || !eps[1].MeshTLS() || eps[1].Weight != 3 || eps[1].Locality != (Locality{"r", "z", "s"}) {
		t.Fatalf("endpoints %+v %+v", eps[0], eps[1])
	}
	e = e.DeepCopy()
	e.Labels = map[string]string{"other": "label"}
	s.Apply(objects(e)...)
	after := s.Snapshot()
	if again := after.Endpoints(after.Service("b", "db.internal"), svc.Ports[0]); again[1] != eps[1] {
		t.Error("the endpoints were made anew although they say the same")
	}
}

func TestAServiceEntryMaySelectPods(t *testing.T) {
	s := NewStore(Options{})
	e := entry("default", "sel", "sel.internal")
	e.Spec.Resolution, e.Spec.Ports[0].TargetPort = networking.ServiceEntry_STATIC, 9080
	e.Spec.WorkloadSelector = &networking.WorkloadSelector{Labels: map[string]string{"app": "reviews"}}
	s.Apply(append(reviews(), objects(e)...)...)
	n := s.Snapshot()
	svc := n.Service("x", "sel.internal")
	if eps := n.Endpoints(svc, svc.Ports[0]); len(eps) != 2 || eps[0].Port != 9080 || eps[0].Workload.Name != "reviews-1" {
		t.Fatalf("endpoints %v", eps)
	}
	if targets := n.Targets(n.Workload("default", "reviews-1")); len(targets) != 1 || len(targets[0].Services) != 2 {
		t.Errorf("targets %+v", targets)
	}
	s.Apply(objects(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "reviews-3", Labels: map[string]string{"app": "reviews"}}, Status: corev1.PodStatus{PodIP: "10.244.0.3"}})...)
	n = s.Snapshot()
	if eps := n.Endpoints(svc, svc.Ports[0]); len(eps) != 3 {
		t.Errorf("a new pod is not among the endpoints: %v", eps)
	}
	s.Delete(Key{"Pod", "default", "reviews-1"})
	n = s.Snapshot()
	if eps := n.Endpoints(svc, svc.Ports[0]); len(eps) != 2 || eps[0].Workload.Name != "reviews-2" {
		t.Errorf("a deleted pod is still among the endpoints: %v", eps)
	}
}
