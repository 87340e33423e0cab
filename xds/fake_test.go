package xds

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/identity/identitytest"
	"github.com/weft-mesh/weft/mesh"
)

const issuerName = "https://kubernetes.default.svc"

// fakeMesh hands out fixed Sets to everybody and, on demand, what is asked of a catalog.
type fakeMesh struct {
	pods     map[string]*mesh.Workload
	sets     []*envoy.Set
	onDemand bool
	catalog  []fakeHost
	strange  string // version of the virtual hosts of names that nobody has: "stranger"

	mu    sync.Mutex
	asked map[*envoy.Demand]*envoy.Set
}

// fakeHost is a host on port 80: "name", or "name.default". Its virtual host is "80/name.default".
type fakeHost struct {
	name, version string
	clusters      []string // that its virtual host names; empty means one of the host's name
	real          func(fakeHost) []*envoy.Resource
}

func (h fakeHost) resources() []*envoy.Resource {
	if h.real != nil {
		return h.real(h)
	}
	list := []*envoy.Resource{res(envoy.VirtualHost, "80/"+h.name+".default", h.version)}
	for _, c := range h.needs() {
		list = append(list, service(c, "1")...)
	}
	return list
}

func (h fakeHost) needs() []string {
	if len(h.clusters) == 0 {
		return []string{h.name}
	}
	return h.clusters
}

// host is whom a name means.
func (m *fakeMesh) host(name string) (fakeHost, bool) {
	for _, h := range m.catalog {
		if name == "80/"+h.name || name == "80/"+h.name+".default" {
			return h, true
		}
	}
	return fakeHost{}, false
}

func (m *fakeMesh) cluster(name string) bool {
	return slices.ContainsFunc(m.catalog, func(h fakeHost) bool { return slices.Contains(h.needs(), name) })
}

func (m *fakeMesh) Workload(namespace, name string) *mesh.Workload { return m.pods[namespace+"/"+name] }

func (m *fakeMesh) Sets(p envoy.Proxy) []*envoy.Set {
	if p.Demand == nil {
		return m.sets
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.asked == nil {
		m.asked = make(map[*envoy.Demand]*envoy.Set)
	}
	asked := m.asked[p.Demand]
	if asked == nil {
		has := make(map[string]*envoy.Resource)
		whole := p.Demand.Has(envoy.VirtualHost, "80/*")
		if whole {
			for _, h := range m.catalog {
				for _, r := range h.resources() {
					has[shortName(r.Type)+r.Name] = r
				}
			}
		}
		for _, name := range p.Demand.Names[envoy.VirtualHost] {
			list := []*envoy.Resource{res(envoy.VirtualHost, name, cmp.Or(m.strange, "stranger"))}
			if h, ok := m.host(name); ok {
				list = h.resources()
			} else if whole && name != "80/*" {
				list = nil
			}
			for _, r := range list {
				has[shortName(r.Type)+r.Name] = r
			}
		}
		for _, name := range p.Demand.Names[envoy.Cluster] {
			list := []*envoy.Resource{res(envoy.Cluster, name, "empty")}
			for _, h := range m.catalog {
				if slices.Contains(h.needs(), name) {
					list = slices.DeleteFunc(h.resources(), func(r *envoy.Resource) bool { return r.Name != name })
				}
			}
			for _, r := range list {
				has[shortName(r.Type)+r.Name] = r
			}
		}
		asked = set("asked/"+p.Demand.Workload, 1, slices.Collect(maps.Values(has))...)
		m.asked[p.Demand] = asked
	}
	return append(slices.Clip(m.sets), asked)
}

func (m *fakeMesh) Resolve(p envoy.Proxy, t envoy.Type, name string) *envoy.Resource {
	if h, ok := m.host(name); ok && t == envoy.VirtualHost {
		name = "80/" + h.name + ".default"
	} else if t == envoy.VirtualHost && p.Demand.Has(t, "80/*") && !strings.Contains(name, "!") && len(name) <= maxName {
		name = "80/*"
	}
	return lookup(m.Sets(p), t, name)
}

func (m *fakeMesh) Means(p envoy.Proxy, t envoy.Type, name string) envoy.Meaning {
	_, isHost := m.host(name)
	switch {
	case t == envoy.VirtualHost && isHost, t == envoy.Cluster && m.cluster(name):
		return envoy.Known
	case strings.Contains(name, "!"), strings.HasSuffix(name, everything), t == envoy.VirtualHost && !strings.HasPrefix(name, "80/"):
		return envoy.Nonsense
	}
	return envoy.Stranger
}

func (m *fakeMesh) OnDemand(w *mesh.Workload) bool { return m.onDemand }

// with is a copy with other Sets.
func (m *fakeMesh) with(sets ...*envoy.Set) *fakeMesh {
	return &fakeMesh{pods: m.pods, sets: sets, onDemand: m.onDemand, catalog: m.catalog, strange: m.strange}
}

func pod(name, uid string) *mesh.Workload {
	return &mesh.Workload{
		Meta:           mesh.Meta{Ref: mesh.Ref{Kind: "Pod", Namespace: "default", Name: name}, UID: uid},
		ServiceAccount: "reviews",
		Injected:       true,
	}
}

// res is a resource whose content is distinguishable.
func res(t envoy.Type, name, content string) *envoy.Resource {
	var m proto.Message
	switch t {
	case envoy.Cluster:
		m = &cluster.Cluster{Name: name, AltStatName: content}
	case envoy.Endpoints:
		m = &endpoint.ClusterLoadAssignment{ClusterName: name, NamedEndpoints: map[string]*endpoint.Endpoint{content: {}}}
	case envoy.Listener:
		m = &listener.Listener{Name: name, StatPrefix: content}
	case envoy.Route:
		m = &route.RouteConfiguration{Name: name, InternalOnlyHeaders: []string{content}}
	case envoy.VirtualHost:
		m = &route.VirtualHost{Name: name, Domains: []string{name}, RequestHeadersToRemove: []string{content}}
	}
	body, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return &envoy.Resource{Type: t, Name: name, Version: content, Body: body, Segment: segment(t, name, content, body), VHDS: t == envoy.Route && content == "vhds",
		Causes: []mesh.Ref{{Kind: "VirtualService", Namespace: "default", Name: "cause-of-" + name}}}
}

// set puts resources into a Set.
func set(scope string, version uint64, list ...*envoy.Resource) *envoy.Set {
	s := &envoy.Set{Scope: scope, Version: version}
	for _, r := range list {
		s.Resources[r.Type] = append(s.Resources[r.Type], r)
	}
	for t := range s.Resources {
		sortByName(s.Resources[t])
	}
	return s
}

// service is what belongs to one host, all at one version.
func service(name, version string) []*envoy.Resource {
	return []*envoy.Resource{res(envoy.Cluster, name, version), res(envoy.Endpoints, name, version)}
}

// fixture is a running server with a token issuer and one known pod.
type fixture struct {
	*Server
	t         testing.TB
	issuer    *identitytest.Issuer
	authority *identity.Authority
	tls       string
	plain     string
	mesh      *fakeMesh
	settings  Config
	serves    sync.WaitGroup
}

func newFixture(t testing.TB, change func(*Config), sets ...*envoy.Set) *fixture {
	t.Helper()
	issuer := identitytest.NewIssuer(t, issuerName, "k1")
	keys, err := identity.OpenKeys(t.Context(), issuer.JWKSFile(t), identity.KeyOptions{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	authority, err := identity.Open(t.Context(), identity.Dir(t.TempDir()), "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	c := Config{
		Verifier:    &identity.Verifier{Keys: keys, Issuer: issuerName, Audience: "istio-ca"},
		Authority:   authority,
		TrustDomain: "cluster.local",
		PodTimeout:  10 * time.Second,
		Log:         slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&c)
	}
	f := &fixture{Server: NewServer(c), t: t, issuer: issuer, authority: authority, settings: c}
	f.mesh = &fakeMesh{pods: map[string]*mesh.Workload{"default/reviews-1": pod("reviews-1", "uid-1")}, sets: sets}
	f.Publish(f.mesh, time.Now())
	f.tls = f.listen("127.0.0.1:0", f.serving())
	f.plain = f.listen("127.0.0.1:0", nil)
	return f
}

func (f *fixture) serving() *tls.Config {
	return &tls.Config{GetCertificate: identity.NewServing(f.authority, "localhost", "127.0.0.1").Certificate}
}

// restart puts a server that remembers nothing in the place of one that was stopped.
func (f *fixture) restart() {
	f.t.Helper()
	f.serves.Wait()
	f.Server = NewServer(f.settings)
	f.Publish(f.mesh, time.Now())
	f.listen(f.tls, f.serving())
}

// testWriter sends logs to the test's output.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Helper()
	w.t.Logf("%s", b[:max(0, len(b)-1)])
	return len(b), nil
}

func (f *fixture) listen(address string, c *tls.Config) string {
	f.t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		f.t.Fatal(err)
	}
	server := f.Server
	f.serves.Go(func() {
		if err := server.Serve(context.Background(), l, c); err != nil {
			f.t.Error(err)
		}
	})
	f.t.Cleanup(func() { server.Stop(); f.serves.Wait() })
	return l.Addr().String()
}

// push publishes new Sets to everybody.
func (f *fixture) push(sets ...*envoy.Set) {
	f.mesh = f.mesh.with(sets...)
	f.Publish(f.mesh, time.Now())
}

func (f *fixture) token(ttl time.Duration) string {
	return f.issuer.Token(f.t, "default", "reviews", "reviews-1", "uid-1", ttl)
}

func (f *fixture) dial(secure bool) *grpc.ClientConn {
	f.t.Helper()
	address, creds := f.plain, insecure.NewCredentials()
	if secure {
		address, creds = f.tls, credentials.NewTLS(&tls.Config{RootCAs: f.authority.RootPool(), ServerName: "localhost"})
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)), grpc.WithStaticStreamWindowSize(1<<24), grpc.WithStaticConnWindowSize(1<<24))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	return conn
}

func testNode() *core.Node {
	metadata, err := structpb.NewStruct(map[string]any{"INSTANCE_IPS": "10.0.0.1,fd00::1", "CLUSTER_ID": "Kubernetes", "LABELS": map[string]any{"app": "x"}})
	if err != nil {
		panic(err)
	}
	return &core.Node{
		Id: "sidecar~10.0.0.1~reviews-1.default~default.svc.cluster.local", Cluster: "reviews.default", Metadata: metadata,
		UserAgentVersionType: &core.Node_UserAgentBuildVersion{UserAgentBuildVersion: &core.BuildVersion{Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 40}}},
	}
}

// client is a proxy that speaks delta.
type client struct {
	t        testing.TB
	stream   discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	incoming chan *discovery.DeltaDiscoveryResponse
	failed   chan error
	said     bool
	barriers int
	cancel   context.CancelFunc
}

// connect opens a stream with a token; an empty token means plaintext without one.
func (f *fixture) connect(token string) *client {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f.t.Cleanup(cancel)
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(f.dial(token != "")).DeltaAggregatedResources(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	c := &client{t: f.t, stream: stream, incoming: make(chan *discovery.DeltaDiscoveryResponse, 1000), failed: make(chan error, 1), cancel: cancel}
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				c.failed <- err
				return
			}
			c.incoming <- r
		}
	}()
	return c
}

func (c *client) send(r *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	if !c.said {
		c.said, r.Node = true, testNode()
	}
	// An error shows when the answer is awaited.
	if err := c.stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
		c.t.Fatal(err)
	}
}

func (c *client) subscribe(t envoy.Type, names ...string) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: t.TypeURL(), ResourceNamesSubscribe: names})
}

// receive returns the next response, which must be of type t.
func (c *client) receive(t envoy.Type) *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	select {
	case r := <-c.incoming:
		if r.TypeUrl != t.TypeURL() {
			c.t.Fatalf("got %s, want %s", describe(r), shortName(t))
		}
		return r
	case err := <-c.failed:
		c.t.Fatalf("the stream ended, want %s: %v", shortName(t), err)
	case <-time.After(10 * time.Second):
		c.t.Fatalf("no %s within 10 s", shortName(t))
	}
	return nil
}

// ends returns the status that the stream ends with.
func (c *client) ends() error {
	c.t.Helper()
	select {
	case err := <-c.failed:
		return err
	case <-time.After(10 * time.Second):
		c.t.Fatal("the stream did not end within 10 s")
		return nil
	}
}

func (c *client) ack(r *discovery.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
}

func (c *client) nack(r *discovery.DeltaDiscoveryResponse, message string) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, ErrorDetail: status.New(codes.Internal, message).Proto()})
}

// expect receives, compares "name@version" and "-name", and confirms.
func (c *client) expect(t envoy.Type, want ...string) {
	c.t.Helper()
	r := c.receive(t)
	if got := content(r); !slices.Equal(got, want) {
		c.t.Fatalf("%s: got %v, want %v", shortName(t), got, want)
	}
	c.ack(r)
}

// quiet proves that nothing more is on its way: the answer to a question asked now
// is the next thing that comes.
func (c *client) quiet() {
	c.t.Helper()
	c.barriers++
	name := fmt.Sprintf("barrier-%d", c.barriers)
	c.subscribe(envoy.Route, name)
	c.expect(envoy.Route, "-"+name)
}

func content(r *discovery.DeltaDiscoveryResponse) []string {
	var out []string
	for _, x := range r.Resources {
		if x.Resource == nil {
			out = append(out, x.Name+" nobody")
			continue
		}
		out = append(out, strings.Join(append([]string{x.Name + "@" + x.Version}, x.Aliases...), " alias "))
		if x.Resource.TypeUrl != r.TypeUrl {
			out = append(out, "type "+x.Resource.TypeUrl)
		}
	}
	for _, name := range r.RemovedResources {
		out = append(out, "-"+name)
	}
	return out
}

func describe(r *discovery.DeltaDiscoveryResponse) string {
	return r.TypeUrl[strings.LastIndexByte(r.TypeUrl, '.')+1:] + fmt.Sprint(content(r))
}

// start does what a proxy does first, for a mesh that has all four types.
func (c *client) start(f *fixture) {
	c.t.Helper()
	names := func(t envoy.Type) (out []string) {
		for _, s := range f.mesh.sets {
			for _, r := range s.Resources[t] {
				out = append(out, r.Name)
			}
		}
		slices.Sort(out)
		return out
	}
	c.subscribe(envoy.Cluster)
	c.ack(c.receive(envoy.Cluster))
	if n := names(envoy.Endpoints); len(n) > 0 {
		c.subscribe(envoy.Endpoints, n...)
		c.ack(c.receive(envoy.Endpoints))
	}
	c.subscribe(envoy.Listener)
	c.ack(c.receive(envoy.Listener))
	if n := names(envoy.Route); len(n) > 0 {
		c.subscribe(envoy.Route, n...)
		c.ack(c.receive(envoy.Route))
	}
}

// value reads a counter.
func value(t testing.TB, c prometheus.Counter) float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetCounter().GetValue()
}
