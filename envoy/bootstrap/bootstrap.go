package bootstrap

import (
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commondnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	upstreamcodecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	filecontentv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/file_content/v3"
	downstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Template is a mesh's bootstrap with holes for what differs between pods. It is immutable and safe for concurrent use.
type Template struct {
	bootstrap fragment
	probes    probeFragments
	domain    string
}

// The markers of the bootstrap, in the order of fill's values.
const (
	markNodeID   = `"@node-id@"`
	markCluster  = `"@node-cluster@"`
	markMetadata = `{"@metadata@":true}`
	markFilters  = `{"name":"@filters@"},`
	markRoutes   = `{"name":"@routes@","match":{"path":"/"},"direct_response":{"status":404}},`
	markClusters = `,{"name":"@clusters@"}`
)

const (
	adminCluster = "prometheus_stats" // Istio's name
	xdsCluster   = "xds-grpc"         // Istio's name
)

// New prepares the bootstrap of a mesh. The error names the setting at fault.
func New(s Settings) (*Template, error) {
	if err := s.setDefaults(); err != nil {
		return nil, err
	}
	b, err := static(s)
	if err != nil {
		return nil, err
	}
	t := &Template{domain: s.ClusterDomain}
	t.bootstrap, err = compile(b, markNodeID, markCluster, markMetadata, markFilters, markRoutes, markClusters)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	t.probes, err = compileProbes()
	return t, err
}

// Build gives the bootstrap of one pod: one line of JSON for Envoy's --config-yaml. The same Params give the same bytes. It
// fails when the result would not fit into one argument, or when two probes have the same path.
func (t *Template) Build(p Params) (string, error) {
	filters, routes, clusters, err := t.probes.build(p.Probes, p.AppMetrics)
	if err != nil {
		return "", err
	}
	domain := t.domain
	id := string(p.Kind) + "~$(" + EnvPodIP + ")~$(" + EnvPodName + ").$(" + EnvPodNamespace + ")~$(" + EnvPodNamespace + ").svc." + domain
	cluster := quote(nil, p.App+".")
	cluster = append(cluster[:len(cluster)-1], "$("+EnvPodNamespace+`)"`...)
	out := make([]byte, 0, 10<<10+len(routes)+len(clusters)+len(filters))
	out = t.bootstrap.fill(out, []byte(`"`+id+`"`), cluster, metadata(p), filters, routes, clusters)
	if len(out) > MaxSize {
		return "", fmt.Errorf("the proxy's bootstrap would be %d bytes long, and Linux takes %d in one argument; the pod has %d probes, and %d bytes of metadata",
			len(out), MaxSize, len(p.Probes), len(metadata(p)))
	}
	return string(out), nil
}

// metadata describes the pod to the control plane, which verifies what matters, and to people who read /config_dump.
func metadata(p Params) []byte {
	to := make([]byte, 0, 1<<10)
	to = append(to, `{"NAME":"$(`+EnvPodName+`)","NAMESPACE":"$(`+EnvPodNamespace+`)","INSTANCE_IPS":"$(`+EnvInstanceIPs+
		`)","SERVICE_ACCOUNT":"$(`+EnvServiceAccount+`)","NODE_NAME":"$(`+EnvNodeName+`)"`...)
	for _, f := range p.Metadata {
		to = append(to, ',')
		to = quote(to, f.Name)
		to = append(to, ':')
		if f.JSON != "" {
			to = append(to, dollars(f.JSON)...)
		} else {
			to = quote(to, f.Text)
		}
	}
	return append(to, '}')
}

// dollars protects a string from kubelet's $(VAR) expansion.
func dollars(s string) string { return strings.ReplaceAll(s, "$", "$$") }

func static(s Settings) (*bootstrapv3.Bootstrap, error) {
	stats, err := statsConfig(s)
	if err != nil {
		return nil, err
	}
	xds, err := xdsClusterOf(s)
	if err != nil {
		return nil, err
	}
	marker, err := structpb.NewStruct(map[string]any{"@metadata@": true})
	if err != nil {
		return nil, err
	}
	b := &bootstrapv3.Bootstrap{
		Node:           &corev3.Node{Id: "@node-id@", Cluster: "@node-cluster@", Metadata: marker},
		Admin:          &bootstrapv3.Admin{Address: address("127.0.0.1", uint32(s.AdminPort), false)},
		LayeredRuntime: runtimeLayers(s.RuntimeValues),
		StatsConfig:    stats,
		// A worker makes its part of a cluster when the first request goes there. Proxies that are told the whole mesh use little of it.
		ClusterManager: &bootstrapv3.ClusterManager{EnableDeferredClusterCreation: true},
		// Istio sets no limit either; saying so keeps Envoy from warning.
		OverloadManager: &overloadv3.OverloadManager{ResourceMonitors: []*overloadv3.ResourceMonitor{{
			Name: "envoy.resource_monitors.global_downstream_max_connections",
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: pack(&downstreamv3.DownstreamConnectionsConfig{
				MaxActiveDownstreamConnections: math.MaxInt32,
			})},
		}}},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			// No proxy is ready before it has its configuration, however long the control plane takes.
			LdsConfig: ads(),
			CdsConfig: ads(),
			AdsConfig: &corev3.ApiConfigSource{
				ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
				TransportApiVersion:       corev3.ApiVersion_V3,
				SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corev3.GrpcService{{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
						ClusterName: xdsCluster,
						// Envoy's own back-off grows to 30 s; a restarted control plane should be noticed at once.
						RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
							BaseInterval: durationpb.New(250 * time.Millisecond), MaxInterval: durationpb.New(2 * time.Second),
						}},
					}},
				}},
			},
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Listeners: []*listenerv3.Listener{
				httpListener(s, "weft-health", uint32(s.HealthPort), []*routev3.Route{healthRoute()}, nil),
				httpListener(s, "weft-metrics", PortMetrics, []*routev3.Route{metricsRoute()}, nil),
				httpListener(s, "weft-probes", PortProbes, []*routev3.Route{
					{Name: "@routes@", Match: exact("/"), Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 404}}},
					healthRoute(), metricsRoute(),
				}, []*hcmv3.HttpFilter{{Name: "@filters@"}}),
			},
			Clusters: []*clusterv3.Cluster{staticCluster(adminCluster, "127.0.0.1", uint32(s.AdminPort)), xds, {Name: "@clusters@"}},
		},
	}
	if s.StatsFlushInterval > 0 {
		b.StatsFlushInterval = durationpb.New(s.StatsFlushInterval)
	}
	return b, nil
}

// runtimeLayers names no layer when nothing is set: Envoy then makes one for its admin interface, as it does not without the field.
func runtimeLayers(values map[string]string) *bootstrapv3.LayeredRuntime {
	if len(values) == 0 {
		return &bootstrapv3.LayeredRuntime{}
	}
	static := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for k, v := range values {
		static.Fields[dollars(k)] = structpb.NewStringValue(dollars(v))
	}
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{
		{Name: "static", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: static}},
		{Name: "admin", LayerSpecifier: &bootstrapv3.RuntimeLayer_AdminLayer_{AdminLayer: &bootstrapv3.RuntimeLayer_AdminLayer{}}},
	}}
}

func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   durationpb.New(0),
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

// xdsClusterOf is the login: TLS to the control plane with its name pinned and its root from a watched SDS document, and
// the pod's token on every stream. "%FILE_CONTENT(file:directory)%" watches the directory: without it Envoy never sees
// that kubelet has rotated the token.
func xdsClusterOf(s Settings) (*clusterv3.Cluster, error) {
	host, port, err := splitHostPort(s.DiscoveryAddress)
	if err != nil {
		return nil, fmt.Errorf("discoveryAddress %q: %w", s.DiscoveryAddress, err)
	}
	tls := pack(&tlsv3.UpstreamTlsContext{
		Sni: dollars(s.DiscoverySAN),
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams: &tlsv3.TlsParameters{
				TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
				TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			},
			AlpnProtocols: []string{"h2"},
			ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: &tlsv3.CertificateValidationContext{
					MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
						SanType: tlsv3.SubjectAltNameMatcher_DNS,
						Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: dollars(s.DiscoverySAN)}},
					}},
				},
				ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{
					Name: s.RootSecret,
					SdsConfig: &corev3.ConfigSource{
						ResourceApiVersion: corev3.ApiVersion_V3,
						ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{PathConfigSource: &corev3.PathConfigSource{
							Path:             s.RootDocument,
							WatchedDirectory: &corev3.WatchedDirectory{Path: path.Dir(s.RootDocument)},
						}},
					},
				},
			}},
		},
	})
	token := pack(&headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{
		Formatters: []*corev3.TypedExtensionConfig{{
			Name:        "envoy.formatter.file_content",
			TypedConfig: pack(&filecontentv3.FileContent{}),
		}},
		RequestMutations: []*mutationv3.HeaderMutation{{Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			Header:       &corev3.HeaderValue{Key: "authorization", Value: "Bearer %FILE_CONTENT(" + s.TokenFile + ":" + path.Dir(s.TokenFile) + ")%"},
		}}}},
	}})
	options := pack(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
				ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: durationpb.New(30 * time.Second), Timeout: durationpb.New(5 * time.Second)},
			}},
		}},
		HttpFilters: []*hcmv3.HttpFilter{
			{Name: "envoy.filters.http.header_mutation", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: token}},
			{Name: "envoy.filters.http.upstream_codec", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&upstreamcodecv3.UpstreamCodec{})}},
		},
	})
	c := staticCluster(xdsCluster, dollars(absolute(host, s.ClusterDomain)), port)
	c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
		Name: "envoy.cluster.dns",
		TypedConfig: pack(&dnsv3.DnsCluster{
			DnsLookupFamily: commondnsv3.DnsLookupFamily_V4_PREFERRED,
			RespectDnsTtl:   true,
			DnsRefreshRate:  durationpb.New(5 * time.Second),
			DnsFailureRefreshRate: &dnsv3.DnsCluster_RefreshRate{
				BaseInterval: durationpb.New(250 * time.Millisecond), MaxInterval: durationpb.New(2 * time.Second),
			},
		}),
	}}
	c.ConnectTimeout = durationpb.New(2 * time.Second)
	c.TransportSocket = &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: tls}}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
	return c, nil
}

// absolute gives a service's name the form that a resolver asks for at once. "istiod.istio-system.svc" alone is tried in each of the
// pod's search domains first: three questions one after the other, while the pod's start waits. Other names stay as they are.
func absolute(host, domain string) string {
	switch {
	case strings.HasSuffix(host, ".svc"):
		return host + "." + domain + "."
	case strings.HasSuffix(host, ".svc."+domain):
		return host + "."
	}
	return host
}

// staticCluster leaves out what Envoy takes when nothing is said (type STATIC): the bootstrap is in every pod object, and whoever
// watches pods gets it.
func staticCluster(name, host string, port uint32) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:           name,
		ConnectTimeout: durationpb.New(time.Second),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(host, port, false)}},
			}}}},
		},
	}
}

// httpListener is one of the proxy's own ports. They stay open when Envoy sheds load, because kubelet would kill a proxy
// whose health port is shut, and they never wait for the control plane.
func httpListener(s Settings, name string, port uint32, routes []*routev3.Route, filters []*hcmv3.HttpFilter) *listenerv3.Listener {
	router := new(routerv3.Router)
	hcm := &hcmv3.HttpConnectionManager{
		StatPrefix: name,
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name:         name,
			VirtualHosts: []*routev3.VirtualHost{{Name: name, Domains: []string{"*"}, Routes: routes}},
		}},
	}
	if port == PortProbes {
		// The app must see kubelet's request, and kubelet the app's answer, as if nothing was between them.
		router.SuppressEnvoyHeaders = true
		hcm.NormalizePath = wrapperspb.Bool(true)
		hcm.GenerateRequestId = wrapperspb.Bool(false)
		hcm.SkipXffAppend = true
		hcm.ServerHeaderTransformation = hcmv3.HttpConnectionManager_PASS_THROUGH
	}
	hcm.HttpFilters = append(filters, &hcmv3.HttpFilter{
		Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(router)},
	})
	listen := "::"
	if s.IPv4Only {
		listen = "0.0.0.0"
	}
	return &listenerv3.Listener{
		Name:                  name,
		Address:               address(listen, port, !s.IPv4Only),
		BypassOverloadManager: true,
		TrafficDirection:      corev3.TrafficDirection_INBOUND,
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(hcm)},
		}}}},
	}
}

// healthRoute asks Envoy itself: 200 only when the first listeners and clusters have arrived and it is not draining.
func healthRoute() *routev3.Route {
	return &routev3.Route{Match: exact(HealthPath), Action: &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: adminCluster},
		PrefixRewrite:    "/ready",
	}}}
}

// metricsRoute opens nothing else of the admin interface: only GET, only this path.
func metricsRoute() *routev3.Route {
	m := exact(MetricsPath)
	m.Headers = []*routev3.HeaderMatcher{{Name: ":method", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "GET"}},
	}}}
	return &routev3.Route{Match: m, Action: &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: adminCluster},
	}}}
}

func exact(p string) *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: p}}
}

func address(host string, port uint32, ipv4Compat bool) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		Ipv4Compat:    ipv4Compat,
	}}}
}

// pack cannot fail for messages that were built in this package: every field is valid UTF-8 by construction or checked
// before.
func pack(m proto.Message) *anypb.Any {
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		return &anypb.Any{TypeUrl: "invalid/" + strconv.Quote(err.Error())}
	}
	return a
}
