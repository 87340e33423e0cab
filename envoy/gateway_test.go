package envoy

import (
	"net/netip"
	"slices"
	"testing"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

func unpackListener(t *testing.T, s *Set) *listener.Listener {
	t.Helper()
	return unpack(t, s.Resources[Listener][0]).(*listener.Listener)
}

func TestServerHostsAndVirtualServiceHostsMeetInTheMoreSpecificOne(t *testing.T) {
	for _, c := range []struct {
		server, hosts []string // of the Gateway default/gw and of a VirtualService in namespace shop
		want          []string
	}{
		{[]string{"*"}, []string{"a.example.com"}, []string{"a.example.com"}},
		{[]string{"a.example.com"}, []string{"*"}, []string{"a.example.com"}},
		{[]string{"*.example.com"}, []string{"a.example.com", "example.com", "b.other.com"}, []string{"a.example.com"}},
		{[]string{"a.example.com", "b.example.com"}, []string{"*.example.com"}, []string{"a.example.com", "b.example.com"}},
		{[]string{"*.example.com"}, []string{"*.apps.example.com"}, []string{"*.apps.example.com"}},
		{[]string{"*"}, []string{"*"}, []string{"*"}},
		{[]string{"shop/*"}, []string{"a.example.com"}, []string{"a.example.com"}},
		{[]string{"*/a.example.com"}, []string{"a.example.com"}, []string{"a.example.com"}},
		{[]string{"./a.example.com"}, []string{"a.example.com"}, nil}, // the Gateway's own namespace
		{[]string{"default/*", "shop/b.example.com"}, []string{"a.example.com", "b.example.com"}, []string{"b.example.com"}},
		{[]string{"a.example.com"}, []string{"b.example.com"}, nil},
	} {
		s := &gatewayServer{
			Server:  &networking.Server{Hosts: c.server},
			gateway: &mesh.Gateway{Meta: mesh.Meta{Ref: mesh.Ref{Namespace: "default", Name: "gw"}}},
		}
		if got := s.serves("shop", c.hosts); !slices.Equal(got, c.want) {
			t.Errorf("server %q, VirtualService %q: got %q, want %q", c.server, c.hosts, got, c.want)
		}
	}
}

func TestGatewaysListenOnTheTargetPortOfTheirService(t *testing.T) {
	service := func(number, target uint16) mesh.Target {
		return mesh.Target{Port: target, ServicePorts: []mesh.Port{{Number: number}}}
	}
	for _, c := range []struct {
		name    string
		targets []mesh.Target
		number  uint16
		want    []uint16
	}{
		{"80 leads to 8080", []mesh.Target{service(80, 8080), service(443, 8443)}, 80, []uint16{8080}},
		{"no service has the port", []mesh.Target{service(443, 8443)}, 31400, []uint16{31400}},
		{"no service at all", nil, 80, []uint16{80}},
		{"two services", []mesh.Target{service(80, 8080), service(80, 9080)}, 80, []uint16{8080, 9080}},
		{"a pod's own port that a service renames", []mesh.Target{service(80, 8080)}, 8080, []uint16{8080}},
	} {
		if got := podPorts(c.targets, c.number); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func (m *meshInMotion) gateway() *Set {
	return m.world.gatewaySet(Proxy{
		Kind: Router, Namespace: "istio-system", Pod: "ingress",
		Workload:  m.world.snap.Workload("istio-system", "ingress"),
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.71")},
	})
}

func TestAGatewayIsToldOnlyWhatConcernsIt(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		want       []string
	}{
		{"endpoint", oneEndpoint, []string{"envoy.endpointsKind outbound|9080||reviews.default.svc.cluster.local"}},
		{"virtual service of sidecars", timeoutForRatings, nil},
		{"the same again", contents(t, "testdata/gateway-http/in.yaml"), nil},
		{"service that it does not use", "apiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: default}\nspec: {clusterIP: 10.96.0.99, ports: [{name: http, port: 80}]}", nil},
		{"its virtual service", `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bookinfo, namespace: default}
spec:
  hosts: [bookinfo.example.com]
  gateways: [bookinfo]
  http:
  - match: [{uri: {prefix: /reviews}}]
    route: [{destination: {host: reviews, port: {number: 9080}, subset: v1}}]
  - route: [{destination: {host: ratings}}]`, []string{"envoy.routeKind http.8080"}},
		{"another gateway", `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: apart, namespace: default}
spec: {selector: {istio: other}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := inMotion(t)
			m.apply(contents(t, "testdata/gateway-http/in.yaml"))
			before := m.gateway()
			m.apply(c.yaml)
			after := m.gateway()
			got := changed(before, after)
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("changed %q, want %q", got, c.want)
			}
			if c.want == nil && before != after {
				t.Errorf("a new set with nothing new in it")
			}
		})
	}
}
