package mesh

import (
	"slices"
	"testing"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func gatewayObject(ns, name string, created int64, selector map[string]string) Object {
	o := &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, CreationTimestamp: metav1.Unix(created, 0)}}
	o.Spec.Selector = selector
	return Object{Object: o}
}

// Istio, Gateway.selector: the labels of the gateway's pods; the search is not restricted to the Gateway's own namespace.
func TestGatewaysBindToPodsInAnyNamespace(t *testing.T) {
	s := NewStore(Options{})
	pod := func(ns, name string, labels map[string]string) Object {
		return Object{Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labels}}}
	}
	s.Apply(
		gatewayObject("prod", "young", 3, map[string]string{"istio": "ingressgateway"}),
		gatewayObject("test", "old", 1, map[string]string{"istio": "ingressgateway"}),
		gatewayObject("prod", "both", 2, map[string]string{"istio": "ingressgateway", "app": "edge"}),
		gatewayObject("prod", "egress", 2, map[string]string{"istio": "egressgateway"}),
		gatewayObject("prod", "all", 4, nil),
		pod("istio-system", "edge", map[string]string{"istio": "ingressgateway", "app": "edge", "x": "y"}),
		pod("istio-system", "plain", map[string]string{"istio": "ingressgateway"}),
		pod("default", "sidecar", map[string]string{"app": "edge"}),
	)
	n := s.Snapshot()
	of := func(n *Snapshot, ns, name string) (out []string) {
		for _, g := range n.Gateways(n.Workload(ns, name)) {
			out = append(out, g.Name)
		}
		return out
	}
	for pod, want := range map[[2]string][]string{
		{"istio-system", "edge"}:  {"old", "both", "young", "all"},
		{"istio-system", "plain"}: {"old", "young", "all"},
		{"default", "sidecar"}:    {"all"},
	} {
		if got := of(n, pod[0], pod[1]); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", pod, got, want)
		}
	}
	before := n.Gateways(n.Workload("istio-system", "plain"))
	s.Apply(gatewayObject("prod", "egress", 2, map[string]string{"istio": "egressgateway", "more": "x"}), gatewayObject("prod", "another", 9, map[string]string{"istio": "egressgateway", "more": "x"}))
	n = s.Snapshot()
	if !slices.Equal(before, n.Gateways(n.Workload("istio-system", "plain"))) {
		t.Error("the gateways of an unrelated pod changed")
	}
	s.Apply(gatewayObject("prod", "another", 9, map[string]string{"istio": "egressgateway", "more": "y"}))
	m := s.Snapshot()
	if a, b := n.Gateways(n.Workload("istio-system", "plain")), m.Gateways(m.Workload("istio-system", "plain")); !sameSlice(a, b) {
		t.Error("the list of an unrelated pod was made anew")
	}
	if n.Gateway("prod", "egress") == nil || n.Gateway("prod", "nothing") != nil {
		t.Error("lookup by name")
	}
}
