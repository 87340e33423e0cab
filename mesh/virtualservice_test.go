package mesh

import (
	"slices"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// virtualService makes one with a single route to its first host.
func virtualService(ns, name string, created int64, spec *networking.VirtualService) *networkingv1.VirtualService {
	if spec.Http == nil && len(spec.Hosts) > 0 {
		spec.Http = []*networking.HTTPRoute{{Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: spec.Hosts[0]}}}}}
	}
	o := &networkingv1.VirtualService{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, CreationTimestamp: metav1.Unix(created, 0)}}
	spec.DeepCopyInto(&o.Spec)
	return o
}

func names(list []*VirtualService) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.Name)
	}
	return out
}

// Istio, "Splitting large virtual services": several may be written for one host; the order between them is undefined by the documentation, and by age in Istio.
func TestVirtualServicesForOneHostComeOldestFirst(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(objects(
		virtualService("b", "young", 300, &networking.VirtualService{Hosts: []string{"x.com"}}),
		virtualService("b", "old", 100, &networking.VirtualService{Hosts: []string{"x.com", "x.com"}}),
		virtualService("a", "same-age", 300, &networking.VirtualService{Hosts: []string{"x.com"}}),
	)...)
	n := s.Snapshot()
	want := []string{"old", "same-age", "young"}
	if got := names(n.VirtualServices("a", "mesh")); !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
	if got := names(n.VirtualServicesFor("a", "mesh", "x.com")); !slices.Equal(got, want) {
		t.Errorf("for the host %v, want %v", got, want)
	}
}

// Istio, VirtualService.gateways: when omitted, the rule applies to sidecars only; to apply to both, list "mesh" beside the gateway.
func TestGatewaysDecideWhereAVirtualServiceApplies(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(objects(
		virtualService("a", "inside", 1, &networking.VirtualService{Hosts: []string{"h"}}),
		virtualService("a", "edge", 2, &networking.VirtualService{Hosts: []string{"h"}, Gateways: []string{"gw"}}),
		virtualService("b", "both", 3, &networking.VirtualService{Hosts: []string{"h"}, Gateways: []string{"a/gw", "mesh"}}),
	)...)
	n := s.Snapshot()
	if got := names(n.VirtualServices("a", "mesh")); !slices.Equal(got, []string{"inside", "both"}) {
		t.Errorf("in the mesh: %v", got)
	}
	if got := names(n.VirtualServices("istio-system", "a/gw")); !slices.Equal(got, []string{"edge", "both"}) {
		t.Errorf("at the gateway: %v", got)
	}
	if got := n.VirtualServices("a", "b/gw"); got != nil {
		t.Errorf("at another gateway: %v", got)
	}
}

func TestTheMostSpecificHostOfVirtualServicesDecides(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(objects(
		virtualService("a", "all", 1, &networking.VirtualService{Hosts: []string{"*.com"}}),
		virtualService("a", "domain", 2, &networking.VirtualService{Hosts: []string{"*.example.com"}}),
		virtualService("a", "name", 3, &networking.VirtualService{Hosts: []string{"www.example.com"}}),
	)...)
	n := s.Snapshot()
	for host, want := range map[string]string{"www.example.com": "name", "a.example.com": "domain", "a.com": "all"} {
		if got := names(n.VirtualServicesFor("a", "mesh", host)); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %v, want %s", host, got, want)
		}
	}
	if got := n.VirtualServicesFor("a", "mesh", "a.org"); got != nil {
		t.Errorf("a.org: %v", got)
	}
}

func TestPrivateVirtualServicesAreForTheirNamespace(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(objects(
		virtualService("a", "private", 1, &networking.VirtualService{Hosts: []string{"x.com"}, ExportTo: []string{"."}}),
		virtualService("b", "public", 2, &networking.VirtualService{Hosts: []string{"x.com"}}),
	)...)
	n := s.Snapshot()
	if got := names(n.VirtualServices("a", "mesh")); !slices.Equal(got, []string{"private", "public"}) {
		t.Errorf("a: %v", got)
	}
	if got := names(n.VirtualServices("b", "mesh")); !slices.Equal(got, []string{"public"}) {
		t.Errorf("b: %v", got)
	}
}

func TestNamesInAVirtualServiceAreResolvedEverywhere(t *testing.T) {
	s := NewStore(Options{})
	in := virtualService("foo", "v", 1, &networking.VirtualService{
		Hosts: []string{"a", "b.com"}, Gateways: []string{"gw", "mesh"},
		Http: []*networking.HTTPRoute{{
			Match:  []*networking.HTTPMatchRequest{{Gateways: []string{"gw"}}},
			Route:  []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: "r"}}},
			Mirror: &networking.Destination{Host: "m"}, Mirrors: []*networking.HTTPMirrorPolicy{{Destination: &networking.Destination{Host: "n"}}},
		}},
		Tcp: []*networking.TCPRoute{{Match: []*networking.L4MatchAttributes{{Gateways: []string{"gw"}}}, Route: []*networking.RouteDestination{{Destination: &networking.Destination{Host: "t"}}}}},
		Tls: []*networking.TLSRoute{{Match: []*networking.TLSMatchAttributes{{Gateways: []string{"x/gw"}}}, Route: []*networking.RouteDestination{{Destination: &networking.Destination{Host: "s"}}}}},
	})
	s.Apply(objects(in)...)
	vs := s.Snapshot().VirtualServices("foo", "foo/gw")[0].Spec
	http, tcp, tls := vs.Http[0], vs.Tcp[0], vs.Tls[0]
	got := []string{vs.Hosts[0], vs.Hosts[1], http.Match[0].Gateways[0], http.Route[0].Destination.Host, http.Mirror.Host, http.Mirrors[0].Destination.Host,
		tcp.Match[0].Gateways[0], tcp.Route[0].Destination.Host, tls.Match[0].Gateways[0], tls.Route[0].Destination.Host}
	const svc = ".foo.svc.cluster.local"
	want := []string{"a" + svc, "b.com", "foo/gw", "r" + svc, "m" + svc, "n" + svc, "foo/gw", "t" + svc, "x/gw", "s" + svc}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if in.Spec.Hosts[0] != "a" {
		t.Error("the caller's object was modified")
	}
}

func TestAListOfVirtualServicesStaysTheSameWhenOthersChange(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(objects(
		virtualService("a", "x", 1, &networking.VirtualService{Hosts: []string{"x.com"}}),
		virtualService("a", "y", 2, &networking.VirtualService{Hosts: []string{"y.com"}, Gateways: []string{"gw"}}),
	)...)
	before := s.Snapshot()
	mesh, gw := before.VirtualServices("a", "mesh"), before.VirtualServices("a", "a/gw")
	s.Apply(objects(virtualService("a", "y", 2, &networking.VirtualService{Hosts: []string{"z.com"}, Gateways: []string{"gw"}}))...)
	after := s.Snapshot()
	if !sameSlice(mesh, after.VirtualServices("a", "mesh")) {
		t.Error("the mesh's list changed although nothing in it did")
	}
	if sameSlice(gw, after.VirtualServices("a", "a/gw")) {
		t.Error("the gateway's list did not change")
	}
}
