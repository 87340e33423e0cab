package envoy

import (
	"net/netip"
	"slices"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	healthcheck "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// The redirect proof. A pod is ready only while its traffic is redirected, both ways and in each of its IP families:
//
//   - kubelet probes podIP:15099, a port on which nobody listens. Only the inbound rules bring the probe to Envoy.
//   - Envoy answers it with 200 only while its own health checks of podIP:15098 succeed, one cluster for each family.
//     Nobody listens there either: only the outbound rules, which turn Envoy's connections to its own pod around,
//     bring a check back into this listener.
//
// A check opens a connection each time. On a kept connection it would go on to succeed after the rules
// were flushed, because the kernel remembers the translation of established connections.
//
// The bootstrap keeps the statistics of these two by name (package bootstrap, stats.go): without them no pod would get ready.
const (
	proofClusterV4 = "redirect-proof-v4"
	proofClusterV6 = "redirect-proof-v6"

	proofTimeout = 500 * time.Millisecond
	// How often an intact redirection is checked: the bound on how long a pod stays ready without its rules.
	proofInterval = time.Second
	// How often a missing one is. Every pod waits for it when it starts: the first check comes with the clusters, some 15 ms before the
	// listener that answers it, so each start has one failure. A check that is refused costs Envoy 0.1 ms, and a pod that
	// stays without its redirection for long is rare.
	proofRetry = 5 * time.Millisecond
)

// proofClusters are the two clusters for a pod with these addresses: the first of each family is the one that counts.
func proofClusters(addresses []netip.Addr) []*cluster.Cluster {
	var out []*cluster.Cluster
	var seen families
	for _, a := range addresses {
		a = a.Unmap()
		switch {
		case !a.IsValid():
		case a.Is4() && !seen.v4:
			seen.v4 = true
			out = append(out, proofCluster(proofClusterV4, a))
		case a.Is6() && !seen.v6:
			seen.v6 = true
			out = append(out, proofCluster(proofClusterV6, a))
		}
	}
	slices.SortFunc(out, func(a, b *cluster.Cluster) int { return len(a.Name) - len(b.Name) })
	return out
}

func proofCluster(name string, podIP netip.Addr) *cluster.Cluster {
	return &cluster.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(proofTimeout),
		HealthChecks: []*core.HealthCheck{{
			Timeout: durationpb.New(proofTimeout),
			// The cluster never carries traffic, so the no-traffic intervals are those that apply (Envoy: HealthCheck).
			Interval:                 durationpb.New(proofInterval),
			NoTrafficHealthyInterval: durationpb.New(proofInterval),
			NoTrafficInterval:        durationpb.New(proofRetry),
			UnhealthyThreshold:       u32(1),
			HealthyThreshold:         u32(1),
			ReuseConnection:          no(),
			HealthChecker: &core.HealthCheck_HttpHealthCheck_{
				HttpHealthCheck: &core.HealthCheck_HttpHealthCheck{Path: "/"},
			},
		}},
		LoadAssignment: &endpoint.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpoint.LocalityLbEndpoints{{
				LbEndpoints: []*endpoint.LbEndpoint{{
					HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
						Address: ipAddress(podIP, portProof),
					}},
				}},
			}},
		},
	}
}

// kubeletProbeChain answers the probes of kubelet: 200 while the redirection is proven, 503 while it is not.
func kubeletProbeChain(f families) *listener.FilterChain {
	whole := &typev3.Percent{Value: 100}
	proven := map[string]*typev3.Percent{}
	if f.v4 {
		proven[proofClusterV4] = whole
	}
	if f.v6 {
		proven[proofClusterV6] = whole
	}
	filter := httpFilter("envoy.filters.http.health_check", &healthcheck.HealthCheck{
		PassThroughMode:              no(),
		ClusterMinHealthyPercentages: proven,
		Headers: []*route.HeaderMatcher{{
			Name: ":path",
			HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: &matcher.StringMatcher{
				MatchPattern: &matcher.StringMatcher_Exact{Exact: "/healthz/ready"},
			}},
		}},
	})
	return &listener.FilterChain{
		Name:             "kubelet-probe",
		FilterChainMatch: arrival{}.match(portKubeletProbe),
		Filters:          []*listener.Filter{answering("kubelet_probe", 404, filter)},
	}
}

// proofChain answers the pod's own checks. From anywhere else the port is closed.
func proofChain() *listener.FilterChain {
	match := arrival{}.match(portProof)
	match.SourceType = listener.FilterChainMatch_SAME_IP_OR_LOOPBACK
	return &listener.FilterChain{
		Name:             "redirect-proof",
		FilterChainMatch: match,
		Filters:          []*listener.Filter{answering("redirect_proof", 200)},
	}
}

// answering is an HTTP connection manager that gives one status to all requests that no filter answers first.
func answering(statPrefix string, status uint32, filters ...*hcm.HttpFilter) *listener.Filter {
	return networkFilter(hcmName, &hcm.HttpConnectionManager{
		StatPrefix: statPrefix,
		RouteSpecifier: routeInline(&route.RouteConfiguration{
			Name: statPrefix,
			VirtualHosts: []*route.VirtualHost{{
				Name:    statPrefix,
				Domains: []string{"*"},
				Routes: []*route.Route{{
					Name:  "default",
					Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
					Action: &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{
						Status: status,
					}},
				}},
			}},
		}),
		HttpFilters: append(slices.Clip(filters), httpRouter()),
	})
}
