package envoy

import (
	"strconv"
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

// inboundContext is what all inbound chains of one workload have in common.
type inboundContext struct {
	mesh        *meshconfig.MeshConfig
	trustDomain string
	families    families
	transparent bool // TPROXY: the app sees the client's address
}

// chain takes connections of one kind on one port, and hands them to the app.
func (c inboundContext) chain(p inboundPort, a arrival) *listener.FilterChain {
	chain := &listener.FilterChain{
		Name:             p.chainName(a.http),
		FilterChainMatch: a.match(p.number),
	}
	if a.mtls {
		chain.TransportSocket = serverMTLS(c.mesh, c.trustDomain)
	}
	if a.http {
		chain.Filters = []*listener.Filter{networkFilter(hcmName, c.requests(p))}
	} else {
		chain.Filters = []*listener.Filter{tcpProxy(c.mesh, p.cluster(), nil)}
	}
	return chain
}

// requests reads HTTP in any version. Whatever the host and path, a request goes to the app on the port it came for.
func (c inboundContext) requests(p inboundPort) *hcm.HttpConnectionManager {
	var routes []*route.Route
	for _, repeatable := range []bool{true, false} {
		r := &route.Route{
			Name:                    "default",
			Match:                   &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
			ResponseHeadersToRemove: []string{undelivered}, // only the sidecar may say so
			Action: &route.Route_Route{Route: &route.RouteAction{
				ClusterSpecifier: &route.RouteAction_Cluster{Cluster: p.cluster()},
				// The caller's side enforces timeouts; here they would only cut streams short.
				Timeout:     durationpb.New(0),
				RetryPolicy: inboundRetries(repeatable),
			}},
		}
		if repeatable {
			r.Match.Headers = []*route.HeaderMatcher{{
				Name: ":method",
				HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: &matcher.StringMatcher{
					MatchPattern: &matcher.StringMatcher_SafeRegex{SafeRegex: &matcher.RegexMatcher{Regex: "GET|HEAD|OPTIONS"}},
				}},
			}}
		}
		if p.service != nil {
			r.Decorator = &route.Decorator{Operation: p.service.Host + ":" + strconv.Itoa(int(p.servicePort)) + "/*"} // names its spans
		}
		routes = append(routes, r)
	}

	m := serverRequests(c.mesh, "inbound_"+p.chainName(true))
	m.ServerHeaderTransformation = hcm.HttpConnectionManager_PASS_THROUGH
	// On plaintext connections Envoy removes x-forwarded-client-cert, so that only proxies of the mesh can vouch for a caller.
	m.ForwardClientCertDetails = hcm.HttpConnectionManager_APPEND_FORWARD
	m.SetCurrentClientCertDetails = &hcm.HttpConnectionManager_SetCurrentClientCertDetails{
		Subject: yes(),
		Uri:     true,
		Dns:     true,
	}
	m.RouteSpecifier = routeInline(&route.RouteConfiguration{
		Name:             p.cluster(),
		ValidateClusters: no(),
		VirtualHosts: []*route.VirtualHost{{
			Name:    "inbound|http|" + strconv.Itoa(int(p.number)),
			Domains: []string{"*"},
			Routes:  routes,
		}},
	})
	m.HttpFilters = []*hcm.HttpFilter{httpRouter()}
	m.LocalReplyConfig = markUndelivered()
	return m
}

// inboundRetries repeat what an app has not seen: when no connection to it can be made, there are more tries within half a second. That is enough
// for clients to learn that an endpoint is going, so that their own retries go elsewhere, and for an app that restarts
// quickly.
//
// A kept connection may also be closed by the app, as it stops or after its idle timeout, in the moment in which the sidecar sends the next
// request on it. Nobody can tell then whether the app has seen the request. It is sent again when that is safe by its
// method (RFC 9110 section 9.2.2, RFC 9112 section 9.3.1); otherwise the client gets 503.
func inboundRetries(repeatable bool) *route.RetryPolicy {
	out := &route.RetryPolicy{
		RetryOn:      "connect-failure,reset-before-request",
		NumRetries:   u32(3),
		RetryBackOff: &route.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(100 * time.Millisecond), MaxInterval: durationpb.New(200 * time.Millisecond)},
	}
	if repeatable {
		out.RetryOn += ",reset"
	}
	return out
}

// undelivered is the response header by which a sidecar tells the client's proxy that its app has not seen the request, because no
// connection to it could be made: apps that stop close their port before all clients know. The client's proxy may
// send such a request to another endpoint, whatever the method.
const undelivered = "x-weft-undelivered"

// markUndelivered adds the mark to answers that the sidecar makes itself when it cannot connect.
func markUndelivered() *hcm.LocalReplyConfig {
	return &hcm.LocalReplyConfig{Mappers: []*hcm.ResponseMapper{{
		Filter: &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslog.ResponseFlagFilter{Flags: []string{"UF"}}, // upstream connection failure
		}},
		HeadersToAdd: []*core.HeaderValueOption{{
			Header:       &core.HeaderValue{Key: undelivered, Value: "true"},
			AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}}}
}

// serverRequests reads the requests of somebody else's clients, in a sidecar or a gateway: also HTTP/1.0 without a Host, and
// with paths made comparable before any rule looks at them.
func serverRequests(m *meshconfig.MeshConfig, statPrefix string) *hcm.HttpConnectionManager {
	out := httpConnectionManager(m, statPrefix)
	out.ServerName = "istio-envoy"
	out.Proxy_100Continue = true
	out.HttpProtocolOptions.AcceptHttp_10 = true
	// What an HTTP/1.0 client without a Host is taken to have asked for: HTTP/1.1 servers refuse requests without one.
	out.HttpProtocolOptions.DefaultHostForHttp_10 = "localhost"
	normalizePaths(out, m)
	return out
}

// normalizePaths applies MeshConfig.pathNormalization, BASE when nothing is said.
func normalizePaths(out *hcm.HttpConnectionManager, m *meshconfig.MeshConfig) {
	n := m.GetPathNormalization().GetNormalization()
	if n == meshconfig.MeshConfig_ProxyPathNormalization_NONE {
		out.NormalizePath = no()
		return
	}
	out.NormalizePath = yes()
	switch n {
	case meshconfig.MeshConfig_ProxyPathNormalization_MERGE_SLASHES:
		out.MergeSlashes = true
	case meshconfig.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES:
		out.MergeSlashes = true
		out.PathWithEscapedSlashesAction = hcm.HttpConnectionManager_UNESCAPE_AND_FORWARD
	default: // BASE
	}
}

// blackholeChain closes connections that were opened to a capture port itself instead of being redirected to it: passed on, they would
// come back here for ever.
func blackholeChain(port uint16) *listener.FilterChain {
	return &listener.FilterChain{
		Name:             "virtualInbound-blackhole",
		FilterChainMatch: arrival{}.match(port),
		Filters:          []*listener.Filter{tcpProxy(nil, blackHoleCluster, nil)},
	}
}
