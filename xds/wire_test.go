package xds

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/envoy"
)

func TestARequestIsReadAsProtobufReadsIt(t *testing.T) {
	data, err := proto.Marshal(&discovery.DeltaDiscoveryRequest{
		Node: testNode(), TypeUrl: envoy.Cluster.TypeURL(), ResourceNamesSubscribe: []string{"a", "b"}, ResourceNamesUnsubscribe: []string{"c"},
		InitialResourceVersions: map[string]string{"a": "1", "b": ""}, ResponseNonce: "7", ErrorDetail: status.New(codes.Internal, "no").Proto(),
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &request{delta: true}
	if err := r.decode(string(data)); err != nil {
		t.Fatal(err)
	}
	if r.typeURL != envoy.Cluster.TypeURL() || !slices.Equal(r.subscribe, []string{"a", "b"}) || !slices.Equal(r.unsubscribe, []string{"c"}) ||
		!maps.Equal(r.initial, map[string]string{"a": "1", "b": ""}) || r.nonce != "7" || !r.failed || r.failure != "no" {
		t.Errorf("%+v", r)
	}
	n := r.node
	if n.id != testNode().Id || n.cluster != "reviews.default" || n.version != "1.40.0" || n.metadata["CLUSTER_ID"] != "Kubernetes" ||
		!slices.Equal(n.addresses, []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}) {
		t.Errorf("%+v", n)
	}
}

// FuzzDelta compares with the generated code: what that accepts is read alike, and nothing makes it panic.
func FuzzDelta(f *testing.F) {
	for _, m := range []*discovery.DeltaDiscoveryRequest{
		{Node: testNode(), TypeUrl: envoy.Cluster.TypeURL()},
		{TypeUrl: envoy.Endpoints.TypeURL(), ResourceNamesSubscribe: []string{"outbound|80||a.b.svc.cluster.local"}, InitialResourceVersions: map[string]string{"x": "y"}},
		{ResponseNonce: "z", ErrorDetail: status.New(codes.Internal, "no").Proto(), ResourceNamesUnsubscribe: []string{"*"}},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &request{delta: true}
		err := r.decode(string(data))
		(&request{}).decode(string(data))
		var m discovery.DeltaDiscoveryRequest
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		if err != nil {
			t.Fatalf("refused what protobuf accepts: %v", err)
		}
		if r.typeURL != m.TypeUrl || r.nonce != m.ResponseNonce || !slices.Equal(r.subscribe, m.ResourceNamesSubscribe) ||
			!slices.Equal(r.unsubscribe, m.ResourceNamesUnsubscribe) || !maps.Equal(r.initial, m.InitialResourceVersions) || r.failed != (m.ErrorDetail != nil) {
			t.Fatalf("%+v\n%v", r, &m)
		}
	})
}
