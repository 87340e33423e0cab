package xds

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/envoy"
)

// worldClient is a proxy that speaks the state-of-the-world protocol.
type worldClient struct {
	t        testing.TB
	stream   discovery.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	incoming chan *discovery.DiscoveryResponse
	names    map[string][]string
	said     bool
}

func (f *fixture) connectWorld(token string) *worldClient {
	f.t.Helper()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(f.dial(true)).StreamAggregatedResources(withToken(f.t, token))
	if err != nil {
		f.t.Fatal(err)
	}
	c := &worldClient{t: f.t, stream: stream, incoming: make(chan *discovery.DiscoveryResponse, 100), names: make(map[string][]string)}
	go func() {
		defer close(c.incoming)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			c.incoming <- r
		}
	}()
	return c
}

func (c *worldClient) send(r *discovery.DiscoveryRequest) {
	c.t.Helper()
	if !c.said {
		c.said, r.Node = true, testNode()
	}
	c.names[r.TypeUrl] = r.ResourceNames
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *worldClient) subscribe(t envoy.Type, names ...string) {
	c.t.Helper()
	c.send(&discovery.DiscoveryRequest{TypeUrl: t.TypeURL(), ResourceNames: names})
}

func (c *worldClient) receive(t envoy.Type, want ...string) *discovery.DiscoveryResponse {
	c.t.Helper()
	select {
	case r := <-c.incoming:
		if r.GetTypeUrl() != t.TypeURL() {
			c.t.Fatalf("got %s %v, want %s", r.GetTypeUrl(), names(c.t, r), shortName(t))
		}
		if got := names(c.t, r); !slices.Equal(got, want) {
			c.t.Fatalf("%s: got %v, want %v", shortName(t), got, want)
		}
		return r
	case <-time.After(10 * time.Second):
		c.t.Fatalf("no %s within 10 s", shortName(t))
		return nil
	}
}

func (c *worldClient) ack(r *discovery.DiscoveryResponse) {
	c.t.Helper()
	c.send(&discovery.DiscoveryRequest{TypeUrl: r.TypeUrl, VersionInfo: r.VersionInfo, ResponseNonce: r.Nonce, ResourceNames: c.names[r.TypeUrl]})
}

func (c *worldClient) expect(t envoy.Type, want ...string) *discovery.DiscoveryResponse {
	c.t.Helper()
	r := c.receive(t, want...)
	c.ack(r)
	return r
}

// names unpacks a response into "name@content".
func names(t testing.TB, r *discovery.DiscoveryResponse) (out []string) {
	t.Helper()
	for _, a := range r.GetResources() {
		m, err := a.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *cluster.Cluster:
			out = append(out, m.Name+"@"+m.AltStatName)
		case *endpoint.ClusterLoadAssignment:
			for content := range m.NamedEndpoints {
				out = append(out, m.ClusterName+"@"+content)
			}
		case *listener.Listener:
			out = append(out, m.Name+"@"+m.StatPrefix)
		case *route.RouteConfiguration:
			out = append(out, m.Name+"@"+strings.Join(m.InternalOnlyHeaders, ""))
		case *tls.Secret:
			out = append(out, m.Name)
		default:
			out = append(out, fmt.Sprintf("%T", m))
		}
	}
	return out
}

func TestStateOfTheWorldSendsAllOfATypeWhenOneChanges(t *testing.T) {
	state := func(v string) *envoy.Set {
		return set("s", 1, slices.Concat(service("a", "1"), service("b", v), []*envoy.Resource{res(envoy.Listener, "l", "1"), res(envoy.Route, "80", v)})...)
	}
	f := newFixture(t, nil, state("1"))
	c := f.connectWorld(f.token(time.Hour))
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster, "a@1", "b@1")
	c.subscribe(envoy.Endpoints, "a", "b")
	c.expect(envoy.Endpoints, "a@1", "b@1")
	c.subscribe(envoy.Listener)
	c.expect(envoy.Listener, "l@1")
	c.subscribe(envoy.Route, "80")
	c.expect(envoy.Route, "80@1")
	c.subscribe(envoy.Secret, "ROOTCA", "default")
	c.expect(envoy.Secret, "ROOTCA", "default")
	f.push(state("2"))
	c.expect(envoy.Cluster, "a@1", "b@2")
	c.expect(envoy.Endpoints, "a@1", "b@2")
	c.expect(envoy.Route, "80@2")
	// The listener did not change and is not sent; asking for a further name is answered next.
	c.send(&discovery.DiscoveryRequest{TypeUrl: envoy.Route.TypeURL(), ResourceNames: []string{"80", "none"}, ResponseNonce: f.lastNonce(envoy.Route)})
	c.expect(envoy.Route, "80@2")
}

// lastNonce reads the only stream's state.
func (f *fixture) lastNonce(t envoy.Type) string {
	s := f.connected()[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.protocol.status(t).Sent
}

func TestStateOfTheWorldKeepsClustersUntilRoutesHaveLeftThem(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, res(envoy.Cluster, "old", "1"), res(envoy.Listener, "l", "1"), res(envoy.Route, "80", "1")))
	c := f.connectWorld(f.token(time.Hour))
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster, "old@1")
	c.subscribe(envoy.Listener)
	c.expect(envoy.Listener, "l@1")
	c.subscribe(envoy.Route, "80")
	c.expect(envoy.Route, "80@1")
	f.push(set("s", 2, res(envoy.Cluster, "new", "1"), res(envoy.Listener, "l", "1"), res(envoy.Route, "80", "2")))
	c.expect(envoy.Cluster, "new@1", "old@1")
	c.expect(envoy.Route, "80@2")
	c.expect(envoy.Cluster, "new@1")
}

func TestStateOfTheWorldRemembersARejectionAndAReconnectIsFree(t *testing.T) {
	state := func(v string) *envoy.Set {
		return set("s", 1, res(envoy.Cluster, "a", v), res(envoy.Listener, "l", "1"))
	}
	f := newFixture(t, nil, state("1"))
	c := f.connectWorld(f.token(time.Hour))
	c.subscribe(envoy.Cluster)
	good := c.expect(envoy.Cluster, "a@1")
	f.push(state("2"))
	bad := c.receive(envoy.Cluster, "a@2")
	c.send(&discovery.DiscoveryRequest{TypeUrl: bad.TypeUrl, VersionInfo: good.VersionInfo, ResponseNonce: bad.Nonce,
		ErrorDetail: status.New(codes.Internal, "Error adding/updating cluster(s) a: no").Proto()})
	c.subscribe(envoy.Listener)
	l := c.expect(envoy.Listener, "l@1")
	if r := f.rejects.list(); len(r) != 1 || r[0].Resource != "a" || r[0].Version != "2" {
		t.Errorf("recorded %+v", r)
	}
	f.push(state("3"))
	now := c.expect(envoy.Cluster, "a@3")

	again := f.connectWorld(f.token(time.Hour))
	again.send(&discovery.DiscoveryRequest{TypeUrl: envoy.Cluster.TypeURL(), VersionInfo: now.VersionInfo})
	again.send(&discovery.DiscoveryRequest{TypeUrl: envoy.Listener.TypeURL(), VersionInfo: l.VersionInfo})
	f.push(set("s", 4, res(envoy.Cluster, "a", "3"), res(envoy.Listener, "l", "2")))
	again.expect(envoy.Listener, "l@2")
}
