package xds

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/envoy/bootstrap"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/mesh"
)

func TestMain(m *testing.M) { os.Exit(kit.PrivateNetwork(m)) }

const admin = "127.0.0.1:15000"

// proxy starts a real Envoy, with the bootstrap of an injected pod.
func (f *fixture) proxy(token string) (p *kit.Proxy, tokenFile string) {
	f.t.Helper()
	kit.Root(f.t)
	dir := f.t.TempDir()
	tokenFile = filepath.Join(dir, "istio-token")
	replace(f.t, tokenFile, token)
	root := filepath.Join(dir, identity.RootDocumentKey)
	replace(f.t, root, identity.RootConfigMap(f.authority.Roots())[identity.RootDocumentKey])
	template, err := bootstrap.New(bootstrap.Settings{DiscoveryAddress: f.tls, DiscoverySAN: "localhost", TokenFile: tokenFile, RootDocument: root})
	if err != nil {
		f.t.Fatal(err)
	}
	config, err := template.Build(bootstrap.Params{Kind: bootstrap.Sidecar, App: "reviews"})
	if err != nil {
		f.t.Fatal(err)
	}
	return kit.StartProxy(f.t, config, admin, map[string]string{
		bootstrap.EnvPodName: "reviews-1", "POD_NAMESPACE": "default", "POD_IP": "127.0.0.1", "INSTANCE_IPS": "127.0.0.1", "SERVICE_ACCOUNT": "reviews",
	}), tokenFile
}

// replace writes a file by renaming, as kubelet does.
func replace(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// resource encodes a message of Envoy's API.
func resource(t testing.TB, typ envoy.Type, name string, m proto.Message) *envoy.Resource {
	t.Helper()
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	version := versionOf([]*envoy.Resource{{Name: name, Version: string(body)}})
	return &envoy.Resource{Type: typ, Name: name, Version: version, Body: body, Segment: segment(typ, name, version, body),
		Causes: []mesh.Ref{{Kind: "VirtualService", Namespace: "default", Name: "cause-of-" + name}}}
}

func pack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ads() *core.ConfigSource {
	return &core.ConfigSource{ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}, ResourceApiVersion: core.ApiVersion_V3,
		InitialFetchTimeout: durationpb.New(0)}
}

func socket(port uint32) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Address: "127.0.0.1", PortSpecifier: &core.SocketAddress_PortValue{PortValue: port}}}}
}

// edsCluster and its endpoints; ms varies its content.
func edsCluster(t testing.TB, name string, port uint32, ms int) []*envoy.Resource {
	t.Helper()
	return []*envoy.Resource{
		resource(t, envoy.Cluster, name, &cluster.Cluster{
			Name: name, ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
			EdsClusterConfig: &cluster.Cluster_EdsClusterConfig{EdsConfig: ads()},
			ConnectTimeout:   durationpb.New(time.Duration(ms) * time.Millisecond),
		}),
		resource(t, envoy.Endpoints, name, &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{{
			LbEndpoints: []*endpoint.LbEndpoint{{HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: socket(port)}}}},
		}}}),
	}
}

// httpListener takes its routes from ADS; with mutual TLS when secure.
func httpListener(t testing.TB, name string, port uint32, secure bool) *envoy.Resource {
	t.Helper()
	chain := &listener.FilterChain{Filters: []*listener.Filter{{Name: "envoy.filters.network.http_connection_manager",
		ConfigType: &listener.Filter_TypedConfig{TypedConfig: pack(t, &hcm.HttpConnectionManager{
			StatPrefix:     name,
			RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: name}},
			HttpFilters:    []*hcm.HttpFilter{{Name: "envoy.filters.http.router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: pack(t, &router.Router{})}}},
		})}}}}
	if secure {
		chain.TransportSocket = &core.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: pack(t, &tlsv3.DownstreamTlsContext{
			CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: "default", SdsConfig: ads()}},
				ValidationContextType:          &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: "ROOTCA", SdsConfig: ads()}},
			},
		})}}
	}
	return resource(t, envoy.Listener, name, &listener.Listener{Name: name, Address: socket(port), FilterChains: []*listener.FilterChain{chain}})
}

// answers is a route that answers by itself.
func answers(t testing.TB, name, text string) *envoy.Resource {
	t.Helper()
	return routes(t, name, &route.Route{
		Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
		Action: &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: 200, Body: &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: text}}}},
	})
}

// forwards is a route to a cluster.
func forwards(t testing.TB, name, to string) *envoy.Resource {
	t.Helper()
	return routes(t, name, &route.Route{
		Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
		Action: &route.Route_Route{Route: &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: to}}},
	})
}

func routes(t testing.TB, name string, r *route.Route) *envoy.Resource {
	t.Helper()
	return resource(t, envoy.Route, name, &route.RouteConfiguration{Name: name, VirtualHosts: []*route.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []*route.Route{r}}}})
}

// get asks a listener; an empty answer means that it does not listen.
func get(port int) string {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return ""
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%d %s", r.StatusCode, b)
}

func TestEnvoyFollowsChanges(t *testing.T) {
	state := func(version uint64, ms int, text string) *envoy.Set {
		return set("s", version, append(edsCluster(t, "backend", 9, ms), httpListener(t, "web", 8080, false), answers(t, "web", text))...)
	}
	f := newFixture(t, nil, state(1, 100, "one"))
	p, _ := f.proxy(f.token(time.Hour))
	p.Live()
	eventually(t, func() bool { return get(8080) == "200 one" })

	f.push(state(2, 100, "two"))
	eventually(t, func() bool { return get(8080) == "200 two" })
	if n := value(t, f.metrics.byType[envoy.Listener].sent); n != 1 {
		t.Errorf("the listener was sent %v times", n)
	}

	// A changed cluster must not stay in warming for want of endpoints that did not change.
	for ms := 101; ms < 120; ms++ {
		f.push(state(uint64(ms), ms, "two"))
	}
	p.Await("/config_dump?resource=dynamic_active_clusters", func(page string) bool { return strings.Contains(page, `"0.119s"`) })
	if n := p.Stat("cluster_manager.warming_clusters"); n != 0 {
		t.Errorf("%d clusters are warming", n)
	}
	eventually(t, func() bool { return f.connected()[0].describe().UpToDate })
}

func TestEnvoyNeverMissesAClusterThatARouteNames(t *testing.T) {
	backend := newBackend(t)
	state := func(version uint64, name string) *envoy.Set {
		return set("s", version, append(edsCluster(t, name, backend, 100), httpListener(t, "web", 8080, false), forwards(t, "web", name))...)
	}
	f := newFixture(t, nil, state(1, "cluster-0"))
	p, _ := f.proxy(f.token(time.Hour))
	p.Live()
	eventually(t, func() bool { return get(8080) == "200 backend" })
	// Each change replaces the cluster that all traffic goes to, while traffic flows.
	stop := make(chan struct{})
	result := make(chan string)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				result <- fmt.Sprintf("%d requests", n)
				return
			default:
			}
			if got := get(8080); got != "200 backend" {
				result <- fmt.Sprintf("request %d: %q", n, got)
				return
			}
		}
	}()
	for i := 1; i <= 30; i++ {
		f.push(state(uint64(i+1), fmt.Sprintf("cluster-%d", i)))
		name := fmt.Sprintf("cluster-%d", i)
		p.Await("/clusters", func(page string) bool {
			return strings.Contains(page, name+"::") && !strings.Contains(page, fmt.Sprintf("cluster-%d::", i-1))
		})
	}
	close(stop)
	if got := <-result; !strings.HasSuffix(got, "requests") {
		t.Error(got)
	} else {
		t.Log(got)
	}
}

// newBackend answers "backend".
func newBackend(t testing.TB) (port uint32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "backend") })}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

func TestEnvoyKeepsItsLastGoodConfigurationWhenItIsSentNonsense(t *testing.T) {
	good := func(text string) []*envoy.Resource {
		return []*envoy.Resource{httpListener(t, "web", 8080, false), answers(t, "web", text), httpListener(t, "other", 8081, false), answers(t, "other", text)}
	}
	bad := map[string]*envoy.Resource{
		// Refused by name: Envoy applies the others of the response.
		"a listener with an unknown filter": resource(t, envoy.Listener, "web", &listener.Listener{Name: "web", Address: socket(8080), FilterChains: []*listener.FilterChain{{
			Filters: []*listener.Filter{{Name: "no.such.filter", ConfigType: &listener.Filter_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/no.such.Filter"}}}}}}}),
		// Refused by validation rules: the whole response is dropped and nobody is named.
		"a route that breaks a constraint": resource(t, envoy.Route, "web", &route.RouteConfiguration{Name: "web", VirtualHosts: []*route.VirtualHost{{Name: "", Domains: nil}}}),
		// Bytes that are no message at all.
		"a route of random bytes": {Type: envoy.Route, Name: "web", Version: "garbage", Body: []byte{0xff, 0xff}, Segment: segment(envoy.Route, "web", "garbage", []byte{0xff, 0xff})},
	}
	for name, r := range bad {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil, set("s", 1, good("one")...))
			p, _ := f.proxy(f.token(time.Hour))
			p.Live()
			eventually(t, func() bool { return get(8080) == "200 one" && get(8081) == "200 one" })
			var next []*envoy.Resource
			for _, g := range good("two") {
				if g.Type == r.Type && g.Name == r.Name {
					g = r
				}
				next = append(next, g)
			}
			f.push(set("s", 2, next...))
			// The neighbour gets its new route although it travels with the bad resource.
			eventually(t, func() bool { return get(8081) == "200 two" && f.rejects.count.Load() == 1 })
			eventually(t, func() bool { return f.connected()[0].describe().UpToDate })
			if got := get(8080); r.Type == envoy.Route && got != "200 one" || got == "" {
				t.Errorf("after the rejection: %q", got)
			}
			if l := f.rejects.list(); l[0].Resource != "web" || l[0].Error == "" {
				t.Errorf("recorded %+v", l)
			}
			// What is repaired is taken again.
			f.push(set("s", 3, good("three")...))
			eventually(t, func() bool { return get(8080) == "200 three" && get(8081) == "200 three" })
		})
	}
}

func TestEnvoyShowsItsSVIDAndItIsRenewedInTime(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.TTL = 10 * time.Second }, set("s", 1, httpListener(t, "web", 8443, true), answers(t, "web", "secret")))
	p, _ := f.proxy(f.token(time.Hour))
	p.Live()
	id := identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "client"}
	svid, err := f.authority.Issue(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(svid.Chain, svid.Key)
	if err != nil {
		t.Fatal(err)
	}
	handshake := func() (*x509.Certificate, error) {
		c, err := tls.Dial("tcp", "127.0.0.1:8443", &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true,
			VerifyConnection: func(s tls.ConnectionState) error {
				_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: f.authority.RootPool()})
				return err
			}})
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0], nil
	}
	var first *x509.Certificate
	eventually(t, func() bool { first, err = handshake(); return err == nil })
	if len(first.URIs) != 1 || first.URIs[0].String() != "spiffe://cluster.local/ns/default/sa/reviews" {
		t.Errorf("URI SANs %v", first.URIs)
	}
	var second *x509.Certificate
	eventually(t, func() bool {
		second, err = handshake()
		if err != nil {
			t.Fatalf("there must be a valid certificate at any time: %v", err)
		}
		return !second.Equal(first)
	})
	if left := time.Until(first.NotAfter); left < time.Second || left > 7*time.Second {
		t.Errorf("the first certificate had %s of 10 s left when it was replaced", left)
	}
	if !strings.Contains(p.Get("/certs"), "spiffe://cluster.local/ns/default/sa/reviews") {
		t.Error("Envoy's own page does not know the certificate")
	}
}

func TestEnvoyConnectsAgainWithAFreshTokenAndIsResentNothing(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, append(edsCluster(t, "backend", 9, 100), httpListener(t, "web", 8443, true), answers(t, "web", "one"))...))
	begin := time.Now()
	life := 8 * time.Second
	p, tokenFile := f.proxy(f.token(life))
	p.Live()
	first := f.connected()[0].number
	replace(t, tokenFile, f.token(time.Hour))
	eventually(t, func() bool { c := f.connected(); return len(c) == 1 && c[0].number != first })
	if at := time.Since(begin); at < life-time.Second {
		t.Errorf("connected again after %s, before the token expired", at)
	}
	eventually(t, func() bool { return value(t, f.metrics.byType[envoy.Secret].kept) == 2 })
	// A change still arrives, and it is the only thing that was sent since.
	f.push(set("s", 2, append(edsCluster(t, "backend", 9, 100), httpListener(t, "web", 8443, true), answers(t, "web", "two"))...))
	p.Await("/config_dump?resource=dynamic_route_configs", func(page string) bool { return strings.Contains(page, `"two"`) })
	for typ, want := range map[envoy.Type]float64{envoy.Cluster: 1, envoy.Endpoints: 1, envoy.Listener: 1, envoy.Route: 2, envoy.Secret: 2} {
		if n := value(t, f.metrics.byType[typ].sent); n != want {
			t.Errorf("%s: %v resources were sent in both streams together, want %v", shortName(typ), n, want)
		}
	}
	if n := value(t, f.metrics.issued); n != 1 {
		t.Errorf("%v certificates were issued, want 1: the first is still good", n)
	}
}

func TestEnvoyOpensAListenerWhoseSecretDoesNotExistOnceItDoes(t *testing.T) {
	// A gateway's credential that the user has not made yet: other listeners must work meanwhile.
	waiting := resource(t, envoy.Listener, "tls", &listener.Listener{Name: "tls", Address: socket(8443), FilterChains: []*listener.FilterChain{{
		Filters: []*listener.Filter{{Name: "envoy.filters.network.http_connection_manager", ConfigType: &listener.Filter_TypedConfig{TypedConfig: pack(t, &hcm.HttpConnectionManager{
			StatPrefix: "tls", RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: "web"}},
			HttpFilters: []*hcm.HttpFilter{{Name: "envoy.filters.http.router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: pack(t, &router.Router{})}}}})}}},
		TransportSocket: &core.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: pack(t, &tlsv3.DownstreamTlsContext{
			CommonTlsContext: &tlsv3.CommonTlsContext{TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: "kubernetes://shop", SdsConfig: ads()}}}})}},
	}}})
	base := []*envoy.Resource{waiting, httpListener(t, "web", 8080, false), answers(t, "web", "one")}
	f := newFixture(t, nil, set("s", 1, base...))
	f.proxy(f.token(time.Hour))
	eventually(t, func() bool { return get(8080) == "200 one" })
	svid, err := f.authority.Issue(identity.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "shop"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	secret := newResource("kubernetes://shop", "1", &tlsv3.Secret{Name: "kubernetes://shop", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(svid.Chain), PrivateKey: inline(svid.Key)}}})
	f.push(set("s", 2, append(base, secret)...))
	eventually(t, func() bool {
		c, err := tls.Dial("tcp", "127.0.0.1:8443", &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func TestDebugPagesShowTheProxyAndNoSecret(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, append(edsCluster(t, "backend", 9, 100), httpListener(t, "web", 8443, true), answers(t, "web", "one"))...))
	p, _ := f.proxy(f.token(time.Hour))
	p.Live()
	page := func(path string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: f.Guard(f.Debug(), "istio-system")}
		go s.Serve(l)
		defer s.Close()
		r, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != 200 {
			t.Fatalf("%s: %d %s %v", path, r.StatusCode, b, err)
		}
		if strings.Contains(string(b), "PRIVATE KEY") || strings.Contains(string(b), "LS0tLS1") {
			t.Errorf("%s shows a key", path)
		}
		return string(b)
	}
	var sync []syncStatus
	eventually(t, func() bool {
		if err := json.Unmarshal([]byte(page("/debug/syncz")), &sync); err != nil {
			t.Fatal(err)
		}
		s := sync[0]
		return s.Proxy == "reviews-1.default" && s.Version == "1.40.0" && s.ClusterSent != "" && s.ClusterSent == s.ClusterAcked && s.RouteSent == s.RouteAcked && s.ListenerAcked != "" && s.SecretAcked != ""
	})
	if got := page("/debug/adsz"); !strings.Contains(got, "spiffe://cluster.local/ns/default/sa/reviews") || !strings.Contains(got, "svidExpires") {
		t.Error(got)
	}
	var dump struct {
		Configs []map[string]any `json:"configs"`
	}
	if err := json.Unmarshal([]byte(page("/debug/config_dump?proxyID=reviews-1.default")), &dump); err != nil || len(dump.Configs) != 5 {
		t.Errorf("%d sections, %v", len(dump.Configs), err)
	}
	if got := page("/debug/config_dump?proxyID=reviews-1.default&types=rds"); !strings.Contains(got, "cause-of-web") || strings.Contains(got, "ListenersConfigDump") {
		t.Error(got)
	}
	page("/debug/")
	page("/debug/rejectz")
}

func TestEnvoyWarmsAClusterWhoseEndpointsWereLostWithTheStream(t *testing.T) {
	state := func(version uint64, ms int, text string) *envoy.Set {
		return set("s", version, append(edsCluster(t, "backend", 9, ms), httpListener(t, "web", 8080, false), answers(t, "web", text))...)
	}
	f := newFixture(t, nil, state(1, 100, "one"))
	p, _ := f.proxy(f.token(time.Hour))
	p.Live()
	eventually(t, func() bool { return get(8080) == "200 one" && f.connected()[0].describe().UpToDate })
	// The changed cluster arrives without the endpoints that it needs again, and the stream breaks.
	cut := state(2, 200, "one")
	cut.Resources[envoy.Endpoints] = nil
	f.push(cut)
	p.Await("/stats?filter=warming_clusters", func(page string) bool { return strings.Contains(page, "warming_clusters: 1") })
	close(f.connected()[0].login.watchdog.bark)
	eventually(t, func() bool { return len(f.connected()) == 0 })
	f.push(state(3, 200, "two"))
	p.Await("/stats?filter=warming_clusters", func(page string) bool { return strings.Contains(page, "warming_clusters: 0") })
	eventually(t, func() bool {
		return get(8080) == "200 two" && len(f.connected()) == 1 && f.connected()[0].describe().UpToDate
	})
}

func TestEnvoyDoesNotWaitForEndpointsThatAreSaidNotToExist(t *testing.T) {
	base := []*envoy.Resource{httpListener(t, "web", 8080, false), answers(t, "web", "one")}
	f := newFixture(t, nil, set("s", 1, append(base, edsCluster(t, "backend", 9, 100)...)...))
	p, _ := f.proxy(f.token(time.Hour))
	p.Live()
	eventually(t, func() bool { return get(8080) == "200 one" && f.connected()[0].describe().UpToDate })
	// Envoy asks for endpoints that went while it was told of the cluster.
	f.push(set("s", 2, append(base, edsCluster(t, "backend", 9, 100)[0], edsCluster(t, "other", 9, 100)[0])...))
	p.Await("/config_dump?resource=dynamic_active_clusters", func(page string) bool { return strings.Contains(page, `"other"`) })
	eventually(t, func() bool { return f.connected()[0].describe().UpToDate })
}

// A cluster that changes waits for its endpoints, also when Envoy has said no to these before.
func TestEnvoyWarmsAClusterWhoseEndpointsItRefused(t *testing.T) {
	backend := newBackend(t)
	nonsense := func(name string) *envoy.Resource {
		address := &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Address: "no address", PortSpecifier: &core.SocketAddress_PortValue{PortValue: 80}}}}
		return resource(t, envoy.Endpoints, name, &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{{
			LbEndpoints: []*endpoint.LbEndpoint{{HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: address}}}},
		}}})
	}
	state := func(version uint64, ms int, good, other bool) *envoy.Set {
		list := append(edsCluster(t, "backend", backend, ms), httpListener(t, "web", 8080, false), forwards(t, "web", "backend"))
		if !good {
			list[1] = nonsense("backend")
		}
		if other {
			list = append(list, edsCluster(t, "other", 9, ms)[0], nonsense("other"))
		}
		return set("s", version, list...)
	}
	f := newFixture(t, nil, state(1, 100, true, false))
	p, _ := f.proxy(f.token(time.Hour))
	p.Live()
	eventually(t, func() bool { return get(8080) == "200 backend" && f.connected()[0].describe().UpToDate })
	f.push(state(2, 100, false, true))
	eventually(t, func() bool { return f.rejects.count.Load() == 2 && f.connected()[0].describe().UpToDate })
	for ms := 201; ms < 204; ms++ {
		f.push(state(uint64(ms), ms, false, true))
		p.Await("/config_dump?resource=dynamic_active_clusters", func(page string) bool { return strings.Count(page, fmt.Sprintf(`"0.%ds"`, ms)) == 2 })
		eventually(t, func() bool { return f.connected()[0].describe().UpToDate })
		if got := get(8080); got != "200 backend" {
			t.Errorf("with the last good endpoints: %q", got)
		}
	}
	f.push(state(300, 204, true, false))
	p.Await("/config_dump?resource=dynamic_active_clusters", func(page string) bool {
		return strings.Contains(page, `"0.204s"`) && !strings.Contains(page, `"other"`)
	})
	eventually(t, func() bool { return get(8080) == "200 backend" && f.connected()[0].describe().UpToDate })
}
