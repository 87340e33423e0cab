package envoy

import (
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	cors "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	fault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uuid "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

const (
	hcmName    = "envoy.filters.network.http_connection_manager"
	faultName  = "envoy.filters.http.fault"
	corsName   = "envoy.filters.http.cors"
	routerName = "envoy.filters.http.router"
)

func httpFilter(name string, config proto.Message) *hcm.HttpFilter {
	return &hcm.HttpFilter{Name: name, ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: anyOf(config)}}
}

// httpConnectionManager has what all HTTP chains of the mesh share; callers add routes, filters and identity handling.
func httpConnectionManager(m *meshconfig.MeshConfig, statPrefix string) *hcm.HttpConnectionManager {
	out := &hcm.HttpConnectionManager{
		StatPrefix:        statPrefix,
		AccessLog:         accessLogs(m),
		StreamIdleTimeout: durationpb.New(0), // long polls and quiet streams live as long as their peers want
		UseRemoteAddress:  no(),
		UpgradeConfigs:    []*hcm.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		HttpProtocolOptions: &core.Http1ProtocolOptions{
			AcceptHttp_10: true,
		},
		RequestIdExtension: &hcm.RequestIDExtension{TypedConfig: anyOf(&uuid.UuidRequestIdConfig{
			UseRequestIdForTraceSampling: yes(),
		})},
	}
	normalizePaths(out, m)
	return out
}

// routeByRDS takes the routes from a resource of their own.
func routeByRDS(name string) *hcm.HttpConnectionManager_Rds {
	return &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: fromADS(), RouteConfigName: name}}
}

// routeInline embeds the routes in the listener.
func routeInline(rc *route.RouteConfiguration) *hcm.HttpConnectionManager_RouteConfig {
	return &hcm.HttpConnectionManager_RouteConfig{RouteConfig: rc}
}

// clientHTTPFilters is the chain of a client side: what VirtualServices may ask for, and the router. Its filters do nothing
// on routes that carry no configuration for them.
func clientHTTPFilters() []*hcm.HttpFilter {
	return []*hcm.HttpFilter{
		httpFilter(faultName, &fault.HTTPFault{}),
		httpFilter(corsName, &cors.Cors{}),
		httpRouter(),
	}
}

func httpRouter() *hcm.HttpFilter { return httpFilter(routerName, &router.Router{}) }

// outboundHTTP is the filter of a sidecar's listeners for the requests of its own app.
func (c client) outboundHTTP(m *meshconfig.MeshConfig, statPrefix, routeName string) *listener.Filter {
	h := httpConnectionManager(m, statPrefix)
	h.RouteSpecifier = routeByRDS(routeName)
	h.StripTrailingHostDot = true // "reviews.default.svc.cluster.local." is what callers write who want no search domains
	h.HttpFilters = clientHTTPFilters()
	if c.lazy {
		h.HttpFilters = append([]*hcm.HttpFilter{askFirst()}, h.HttpFilters...)
		h.StreamIdleTimeout = durationpb.New(holdAtMost)
	}
	return networkFilter(hcmName, h)
}
