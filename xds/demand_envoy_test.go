package xds

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ondemand "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/on_demand/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcp "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/envoy"
)

// asking is what every proxy on demand has: an HTTP listener on port 8080 whose table asks, and a TCP listener on 8081 whose cluster is asked for.
func asking(t testing.TB) []*envoy.Resource {
	t.Helper()
	http := resource(t, envoy.Listener, "web", &listener.Listener{Name: "web", Address: socket(8080), FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{{
		Name: "envoy.filters.network.http_connection_manager",
		ConfigType: &listener.Filter_TypedConfig{TypedConfig: pack(t, &hcm.HttpConnectionManager{
			StatPrefix:        "web",
			StreamIdleTimeout: durationpb.New(10 * time.Second),
			RouteSpecifier:    &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: "80"}},
			HttpFilters: []*hcm.HttpFilter{
				{Name: "envoy.filters.http.on_demand", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: pack(t, &ondemand.OnDemand{})}},
				{Name: "envoy.filters.http.router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: pack(t, &router.Router{})}},
			},
		})}}}}}})
	l4 := resource(t, envoy.Listener, "tcp", &listener.Listener{Name: "tcp", Address: socket(8081), FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{{
		Name: "envoy.filters.network.tcp_proxy",
		ConfigType: &listener.Filter_TypedConfig{TypedConfig: pack(t, &tcp.TcpProxy{
			StatPrefix:       "tcp",
			ClusterSpecifier: &tcp.TcpProxy_Cluster{Cluster: "tcp"},
			OnDemand:         &tcp.TcpProxy_OnDemand{OdcdsConfig: ads(), Timeout: durationpb.New(5 * time.Second)},
		})}}}}}})
	table := resource(t, envoy.Route, "80", &route.RouteConfiguration{Name: "80", Vhds: &route.Vhds{ConfigSource: ads()}})
	table.VHDS = true
	return []*envoy.Resource{http, l4, table}
}

// serves makes a host that leads to a backend, over equally weighted clusters when there are several.
func serves(t testing.TB, name string, backend uint32, clusters ...string) fakeHost {
	return fakeHost{name: name, clusters: clusters, real: func(h fakeHost) []*envoy.Resource {
		weighted := &route.WeightedCluster{}
		var list []*envoy.Resource
		for _, c := range h.needs() {
			weighted.Clusters = append(weighted.Clusters, &route.WeightedCluster_ClusterWeight{Name: c, Weight: wrapperspb.UInt32(1)})
			list = append(list, edsCluster(t, c, backend, 20000)...)
		}
		full := "80/" + h.name + ".default"
		return append(list, resource(t, envoy.VirtualHost, full, &route.VirtualHost{Name: full, Domains: []string{h.name, h.name + ".default"}, Routes: []*route.Route{{
			Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
			Action: &route.Route_Route{Route: &route.RouteAction{
				ClusterSpecifier:      &route.RouteAction_WeightedClusters{WeightedClusters: weighted},
				RequestMirrorPolicies: []*route.RouteAction_RequestMirrorPolicy{{Cluster: h.needs()[0]}},
			}},
		}}}))
	}}
}

// askFor sends a request for a host to the proxy.
func askFor(host string) string {
	c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := http.NewRequest(http.MethodGet, "http://127.0.0.1:8080/", nil)
	if err != nil {
		return err.Error()
	}
	r.Host = host
	answer, err := c.Do(r)
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d %s", answer.StatusCode, b)
}

// demanding is a server and an Envoy that knows nobody.
func demanding(t *testing.T, catalog ...fakeHost) (*fixture, *kit.Proxy) {
	t.Helper()
	f := newFixture(t, nil, set("fixed", 1, asking(t)...))
	f.serve(catalog...)
	p, _ := f.proxy(f.token(time.Hour))
	p.Live()
	return f, p
}

func TestEnvoyIsTold100HostsAsTheAppNamesThem(t *testing.T) {
	backend := newBackend(t)
	catalog := []fakeHost{serves(t, "split", backend, "v1", "v2", "v3")}
	for i := range 100 {
		catalog = append(catalog, serves(t, fmt.Sprint("h", i), backend))
	}
	f, p := demanding(t, catalog...)
	begun := time.Now()
	for range 10 {
		if got := askFor("split"); got != "200 backend" {
			t.Fatalf("weighted clusters with a mirror: %s", got)
		}
	}
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			for _, form := range []string{"h%d", "h%d.default"} {
				if got := askFor(fmt.Sprintf(form, i)); got != "200 backend" {
					t.Errorf("h%d: %s", i, got)
				}
			}
		})
	}
	wg.Wait()
	t.Log("210 requests in", time.Since(begun))
	if n := p.Stat("cluster_manager.warming_clusters"); n != 0 {
		t.Errorf("%d clusters are warming", n)
	}
	eventually(t, func() bool { return f.connected()[0].describe().UpToDate })
	for typ, want := range map[envoy.Type]float64{envoy.Cluster: 103, envoy.Endpoints: 103, envoy.VirtualHost: 101} {
		// A slow Envoy may get endpoints before their cluster, and again behind it.
		if n := value(t, f.metrics.byType[typ].sent); n < want || n > want && typ != envoy.Endpoints || n > 2*want {
			t.Errorf("%v %s were sent for %v", n, shortName(typ), want)
		}
	}
}

func TestEnvoyIsAnsweredAtOnceForAHostThatNobodyHasAndFindsItLater(t *testing.T) {
	backend := newBackend(t)
	f, _ := demanding(t)
	if got := askFor("later"); !strings.HasPrefix(got, "404") {
		t.Fatalf("nobody's host: %s", got)
	}
	f.serve(serves(t, "later", backend))
	eventually(t, func() bool { return askFor("later") == "200 backend" })
	f.serve()
	eventually(t, func() bool { return strings.HasPrefix(askFor("later"), "404") })
	f.serve(serves(t, "later", backend, "other"))
	eventually(t, func() bool { return askFor("later") == "200 backend" })
	// More names than anybody needs: each is answered, and what exists is found among them.
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range maxStrangers / 4 {
				if got := askFor(fmt.Sprintf("scan-%d-%d", i, j)); !strings.HasPrefix(got, "404") {
					t.Errorf("scan-%d-%d: %s", i, j, got)
				}
			}
		})
	}
	wg.Wait()
	f.serve(serves(t, "later", backend, "other"), serves(t, "new", backend))
	if got := askFor("new"); got != "200 backend" {
		t.Errorf("after the scan: %s", got)
	}
}

func TestEnvoyConnectsAgainToAServerThatRemembersNothing(t *testing.T) {
	backend := newBackend(t)
	f, p := demanding(t, serves(t, "a", backend), serves(t, "b", backend), serves(t, "down", backend), serves(t, "tcp", backend))
	for _, host := range []string{"a", "b.default", "nobody"} {
		askFor(host)
	}
	// Another replica has asked for something, too.
	f.Learn((&envoy.Demand{Workload: "default/reviews"}).With(envoy.VirtualHost, "80/tcp").With(envoy.Cluster, "b"))
	p.Await("/clusters", func(page string) bool { return strings.Contains(page, "tcp::") })
	eventually(t, func() bool { return len(f.connected()) == 1 && f.connected()[0].describe().UpToDate })
	f.Stop()
	// Whom it knows, it knows; whom it does not know waits for a server.
	if got := askFor("a"); got != "200 backend" {
		t.Errorf("while the server was away: %s", got)
	}
	held, err := net.Dial("tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	io.WriteString(held, "GET / HTTP/1.1\r\nHost: down\r\n\r\n")
	held.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := held.Read(make([]byte, 100)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("answered though there is no server: %d bytes, %v", n, err)
	}
	f.restart()
	held.SetReadDeadline(time.Now().Add(30 * time.Second))
	if answer, err := http.ReadResponse(bufio.NewReader(held), nil); err != nil || answer.StatusCode != 200 {
		t.Errorf("asked while the server was away: %v", err)
	}
	for _, host := range []string{"a", "b", "tcp"} {
		if got := askFor(host); got != "200 backend" {
			t.Errorf("%s: %s", host, got)
		}
	}
	if got := askFor("nobody"); !strings.HasPrefix(got, "404") {
		t.Errorf("nobody: %s", got)
	}
	eventually(t, func() bool { return f.connected()[0].describe().UpToDate })
	for typ, want := range map[envoy.Type]float64{envoy.Cluster: 1, envoy.Listener: 0, envoy.Route: 0, envoy.VirtualHost: 1} {
		if n := value(t, f.metrics.byType[typ].sent); n != want {
			t.Errorf("%v %s were sent, want %v", n, shortName(typ), want)
		}
	}
}

func TestEnvoyIsToldAClusterWhenAConnectionNeedsIt(t *testing.T) {
	backend := newBackend(t)
	f, _ := demanding(t, serves(t, "tcp", backend))
	if got := get(8081); got != "200 backend" {
		t.Errorf("over TCP: %s", got)
	}
	f.Stop()
	f.restart()
	eventually(t, func() bool { return len(f.connected()) == 1 && f.connected()[0].describe().UpToDate })
	if got := get(8081); got != "200 backend" {
		t.Errorf("after a restart: %s", got)
	}
}

func TestEnvoyCompletesATableThatComesLaterOrComesBack(t *testing.T) {
	backend := newBackend(t)
	f, _ := demanding(t, serves(t, "a", backend))
	if got := askFor("a"); got != "200 backend" {
		t.Fatal(got)
	}
	fixed := f.mesh.sets[0]
	f.push(set("fixed", 2))
	eventually(t, func() bool { return get(8080) == "" })
	f.push(fixed)
	// Envoy makes no new request for virtual hosts; without them the listener would not open.
	eventually(t, func() bool { return askFor("a") == "200 backend" })
}
