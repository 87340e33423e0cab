package bootstrap

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	healthcheckv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Kubelet has no client certificate, so under STRICT mTLS it cannot reach the app. Its probes are sent to PortProbes instead,
// which is not captured, and Envoy asks the app from inside the pod: from 127.0.0.6 to podIP:port, a source address that the
// redirect rules let through to the app (see package redirect).
//
// HTTP probes are proxied. A TCP or gRPC probe cannot be, so Envoy checks the app once a second on its own account and the
// health_check filter answers with the last result; until there is one the answer is 503, which kubelet takes as a failure.

// probeFragments are the JSON of what one probe adds.
type probeFragments struct {
	route            fragment
	filter           fragment
	http, https, h2c fragment
	tcpCheck, gCheck fragment
	lua, merged      fragment
}

// Markers. Numbers and durations are values that nobody writes.
const (
	markPath    = `"@path@"`
	markName    = `"@name@"`
	markTarget  = `"@target@"`
	markTimeout = `"315000001s"`
	markPort    = `54321`
)

// checkEvery is how often TCP and gRPC probes ask the app. Kubelet's shortest period is 1 s.
const checkEvery = time.Second

func compileProbes() (probeFragments, error) {
	marked := durationpb.New(315000001 * time.Second)
	var f probeFragments
	var err error
	take := func(to *fragment, from fragment, e error) {
		*to = from
		if e != nil && err == nil {
			err = fmt.Errorf("probes: %w", e)
		}
	}
	route := &routev3.Route{
		Match: exact("@path@"),
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "@name@"},
			Timeout:          marked,
			RegexRewrite: &matcherv3.RegexMatchAndSubstitute{
				Pattern:      &matcherv3.RegexMatcher{Regex: "^.*$"},
				Substitution: "@target@",
			},
		}},
		// Kubelet would follow a redirect to a path that is not served here. Without the header it takes the 3xx as
		// what it is for a probe: success.
		ResponseHeadersToRemove: []string{"location"},
	}
	c, e := compile(route, markPath, markName, markTimeout, markTarget)
	take(&f.route, c, e)

	filter := &hcmv3.HttpFilter{Name: "envoy.filters.http.health_check", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&healthcheckv3.HealthCheck{
		PassThroughMode:              wrapperspb.Bool(false),
		ClusterMinHealthyPercentages: map[string]*typev3.Percent{"@name@": {Value: 100}},
		Headers: []*routev3.HeaderMatcher{{Name: ":path", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
			StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "@path@"}},
		}}},
	})}}
	c, e = compile(filter, markPath, markName)
	take(&f.filter, c, e)

	app := func() *clusterv3.Cluster {
		c := staticCluster("@name@", "$("+EnvPodIP+")", 54321)
		c.UpstreamBindConfig = &corev3.BindConfig{
			SourceAddress:        address("127.0.0.6", 0, false).GetSocketAddress(),
			ExtraSourceAddresses: []*corev3.ExtraSourceAddress{{Address: address("::6", 0, false).GetSocketAddress()}},
		}
		return c
	}
	http := app()
	// A new connection for each probe, as kubelet does: an app that stops accepting must not look healthy.
	http.TypedExtensionProtocolOptions = protocol(&httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{MaxRequestsPerConnection: wrapperspb.UInt32(1)},
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
		}},
	})
	c, e = compile(http, markName, markPort)
	take(&f.http, c, e)

	https := app()
	https.TypedExtensionProtocolOptions = http.TypedExtensionProtocolOptions
	// Kubernetes: "the kubelet skips certificate verification" for HTTPS probes.
	https.TransportSocket = &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{
		TypedConfig: pack(&tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		}}}),
	}}
	c, e = compile(https, markName, markPort)
	take(&f.https, c, e)

	h2c := app()
	h2c.TypedExtensionProtocolOptions = protocol(&httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{MaxRequestsPerConnection: wrapperspb.UInt32(1)},
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
		}},
	})
	c, e = compile(h2c, markName, markPort)
	take(&f.h2c, c, e)

	check := func() *corev3.HealthCheck {
		every := durationpb.New(checkEvery)
		return &corev3.HealthCheck{
			Timeout: marked, Interval: every,
			// No traffic ever goes to these clusters, and Envoy then checks once a minute unless told. While the app
			// is not up the checks are closer together: kubelet's first look comes soon, its second a period later.
			NoTrafficInterval: durationpb.New(checkEvery / 4), NoTrafficHealthyInterval: every,
			UnhealthyThreshold: wrapperspb.UInt32(1), HealthyThreshold: wrapperspb.UInt32(1),
			ReuseConnection: wrapperspb.Bool(false),
		}
	}
	tcp := app()
	hc := check()
	hc.HealthChecker = &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{}}
	tcp.HealthChecks = []*corev3.HealthCheck{hc}
	c, e = compile(tcp, markName, markPort, markTimeout)
	take(&f.tcpCheck, c, e)

	grpc := app()
	grpc.TypedExtensionProtocolOptions = protocol(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
		}},
	})
	hc = check()
	hc.HealthChecker = &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{ServiceName: "@target@"}}
	grpc.HealthChecks = []*corev3.HealthCheck{hc}
	c, e = compile(grpc, markName, markPort, markTimeout, markTarget)
	take(&f.gCheck, c, e)

	c, e = mergeFilter()
	take(&f.lua, c, e)
	c, e = mergeRoute()
	take(&f.merged, c, e)
	return f, err
}

func protocol(o *httpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(o)}
}

// build gives the probes' HTTP filters and routes, each followed by a comma, and their clusters, each preceded by one.
// HTTP probes of one port share a cluster.
func (f *probeFragments) build(probes []Probe, metrics *AppMetrics) (filters, routes, clusters []byte, err error) {
	if metrics != nil {
		filters = append(f.lua.fill(filters), ',')
		routes = append(f.merged.fill(routes, luaString(metrics.Path)), ',')
		port := strconv.AppendUint(nil, uint64(metrics.Port), 10)
		clusters = f.http.fill(append(clusters, ','), quote(nil, appMetricsCluster), port)
	}
	if len(probes) == 0 {
		return filters, routes, clusters, nil
	}
	routes = slices.Grow(routes, len(probes)*300)
	clusters = slices.Grow(clusters, len(probes)*700)
	seen := make(map[string]bool, 2*len(probes))
	var name, path, port, timeout []byte
	for _, p := range probes {
		if seen[p.Path] {
			return nil, nil, nil, fmt.Errorf("two probes at %s", p.Path)
		}
		seen[p.Path] = true
		path = quote(path[:0], p.Path)
		port = strconv.AppendUint(port[:0], uint64(p.Port), 10)
		timeout = seconds(timeout[:0], p.Timeout)
		switch p.Handler {
		case HTTP, HTTPS, H2C:
			scheme, cluster := "http", &f.http
			switch p.Handler {
			case HTTPS:
				scheme, cluster = "https", &f.https
			case H2C:
				scheme, cluster = "h2c", &f.h2c
			}
			key := "app-probe|" + scheme + "|" + string(port)
			name = quote(name[:0], key)
			// Backslashes are the substitution's own escape.
			target := quote(nil, strings.ReplaceAll(p.Target, `\`, `\\`))
			routes = append(f.route.fill(routes, path, name, timeout, target), ',')
			if !seen[key] {
				seen[key] = true
				clusters = cluster.fill(append(clusters, ','), name, port)
			}
		case TCP:
			name = quote(name[:0], "app-probe|tcp|"+p.Path)
			filters = append(f.filter.fill(filters, path, name), ',')
			clusters = f.tcpCheck.fill(append(clusters, ','), name, port, timeout)
		case GRPC:
			name = quote(name[:0], "app-probe|grpc|"+p.Path)
			filters = append(f.filter.fill(filters, path, name), ',')
			clusters = f.gCheck.fill(append(clusters, ','), name, port, timeout, quote(nil, p.Target))
		default:
			return nil, nil, nil, fmt.Errorf("probe %s: unknown handler %d", p.Path, p.Handler)
		}
	}
	return filters, routes, clusters, nil
}

// seconds is a protobuf duration in JSON. Envoy: a route timeout of 0s means none; a health check must have one.
func seconds(to []byte, d time.Duration) []byte {
	to = append(to, '"')
	to = strconv.AppendFloat(to, d.Seconds(), 'f', -1, 64)
	return append(to, `s"`...)
}
