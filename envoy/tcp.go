package envoy

import (
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	commonsetfilterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	setfilterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

const tcpProxyName = "envoy.filters.network.tcp_proxy"

// tcpProxy passes bytes to one cluster. idle is nil for Envoy's default of one hour; zero switches it off.
func tcpProxy(m *meshconfig.MeshConfig, cluster string, idle *durationpb.Duration) *listener.Filter {
	return tcpSplit(m, cluster, []weightedName{{cluster, 1}}, idle)
}

type weightedName struct {
	cluster string
	weight  uint32
}

// tcpSplit passes each connection to one of several clusters.
func tcpSplit(m *meshconfig.MeshConfig, statPrefix string, clusters []weightedName, idle *durationpb.Duration) *listener.Filter {
	return networkFilter(tcpProxyName, tcpConfig(m, statPrefix, clusters, idle))
}

func tcpConfig(m *meshconfig.MeshConfig, statPrefix string, clusters []weightedName, idle *durationpb.Duration) *tcpproxy.TcpProxy {
	out := &tcpproxy.TcpProxy{
		StatPrefix:  statPrefix,
		AccessLog:   accessLogs(m),
		IdleTimeout: idle,
	}
	if len(clusters) == 1 {
		out.StatPrefix = clusters[0].cluster
		out.ClusterSpecifier = &tcpproxy.TcpProxy_Cluster{Cluster: clusters[0].cluster}
		return out
	}
	w := &tcpproxy.TcpProxy_WeightedCluster{}
	for _, c := range clusters {
		w.Clusters = append(w.Clusters, &tcpproxy.TcpProxy_WeightedCluster_ClusterWeight{Name: c.cluster, Weight: c.weight})
	}
	out.ClusterSpecifier = &tcpproxy.TcpProxy_WeightedClusters{WeightedClusters: w}
	return out
}

// tcpProxy and tcpSplit of a client that may have to ask for the cluster first.
func (v *view) tcpProxy(m *meshconfig.MeshConfig, cluster string, idle *durationpb.Duration) *listener.Filter {
	return v.tcpSplit(m, cluster, []weightedName{{cluster, 1}}, idle)
}

func (v *view) tcpSplit(m *meshconfig.MeshConfig, statPrefix string, clusters []weightedName, idle *durationpb.Duration) *listener.Filter {
	out := tcpConfig(m, statPrefix, clusters, idle)
	v.uses |= usesDiscovery
	if v.client.lazy {
		out.OnDemand = &tcpproxy.TcpProxy_OnDemand{OdcdsConfig: fromADS(), Timeout: durationpb.New(askTimeout)}
	}
	return networkFilter(tcpProxyName, out)
}

// sayTCP overrides the ALPN of the mesh TLS behind a filter chain: the server cannot see whether the bytes inside are HTTP, and is
// told by the client's proxy, which looked.
func sayTCP() *listener.Filter {
	return networkFilter("envoy.filters.network.set_filter_state", &setfilterstate.Config{
		OnNewConnection: []*commonsetfilterstate.FilterStateValue{{
			Key: &commonsetfilterstate.FilterStateValue_ObjectKey{ObjectKey: "envoy.network.application_protocols"},
			Value: &commonsetfilterstate.FilterStateValue_FormatString{FormatString: &core.SubstitutionFormatString{
				Format: &core.SubstitutionFormatString_TextFormatSource{TextFormatSource: &core.DataSource{
					Specifier: &core.DataSource_InlineString{InlineString: "istio-peer-exchange,istio"},
				}},
			}},
			SharedWithUpstream: commonsetfilterstate.FilterStateValue_ONCE,
		}},
	})
}
