package envoy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// A change that has nothing to do with a workload: what each of its replicas costs until that is known.
func BenchmarkInboundSideUnchanged(b *testing.B) {
	s := snapshotOf(b, contents(b, "testdata/bookinfo.yaml"))
	p := Proxy{Kind: Sidecar, Namespace: "default", Pod: "reviews-v1", Workload: s.Workload("default", "reviews-v1"),
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.21")}}
	w := NewWorld(s, nil)
	w.workloadSet(p)
	w.proofSet(p)
	b.ReportAllocs()
	for b.Loop() {
		w = NewWorld(s, w)
		w.workloadSet(p)
		w.proofSet(p)
	}
}

// The inbound side of a workload that nobody has asked for yet.
func BenchmarkInboundSideBuilt(b *testing.B) {
	s := snapshotOf(b, contents(b, "testdata/bookinfo.yaml"))
	p := Proxy{Kind: Sidecar, Namespace: "default", Pod: "reviews-v1", Workload: s.Workload("default", "reviews-v1"),
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.21")}}
	b.ReportAllocs()
	for b.Loop() {
		w := NewWorld(s, nil)
		w.workloadSet(p)
		w.proofSet(p)
	}
}

// An ingress gateway with 1000 hosts, each with a VirtualService, and a change of one endpoint.
func BenchmarkGatewayOf1000Hosts(b *testing.B) {
	var docs strings.Builder
	docs.WriteString(contents(b, "testdata/bookinfo.yaml") + "\n---\n" + contents(b, "testdata/gateway-http/in.yaml"))
	for i := range 1000 {
		fmt.Fprintf(&docs, `
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vs-%d, namespace: default}
spec:
  hosts: [host-%d.example.com]
  gateways: [bookinfo]
  http:
  - match: [{uri: {prefix: /ratings}}]
    route: [{destination: {host: ratings}}]
  - route: [{destination: {host: reviews, subset: v1}}]
`, i, i)
	}
	s := snapshotOf(b, docs.String())
	p := Proxy{Kind: Router, Namespace: "istio-system", Pod: "ingress", Workload: s.Workload("istio-system", "ingress"),
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.71")}}
	b.Run("built", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			NewWorld(s, nil).gatewaySet(p)
		}
	})
	b.Run("unchanged", func(b *testing.B) {
		b.ReportAllocs()
		w := NewWorld(s, nil)
		w.gatewaySet(p)
		for b.Loop() {
			w = NewWorld(s, w)
			w.gatewaySet(p)
		}
	})
}
