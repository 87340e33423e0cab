package envoy

import (
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	upstreamhttp "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weft-mesh/weft/mesh"
)

// Connections from the sidecar to the app come from these addresses: the outbound rules let them alone, and Istio's users know
// 127.0.0.6 from their apps' logs. `::6` must exist on the pod's lo (the redirect puts it there); from `::1`
// the kernel never delivers the RST of a closed port.
const (
	toAppV4 = "127.0.0.6"
	toAppV6 = "::6"
)

// inboundCluster leads to the app on the port of the pod for which the connection was meant, on the very address that the client
// used: apps that listen on the pod's address only are reached too. Limits that a DestinationRule sets for the host hold
// here as well as in its clients.
func (c inboundContext) inboundCluster(p inboundPort) *cluster.Cluster {
	m := &cluster.Cluster{
		Name:                 p.cluster(),
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_ORIGINAL_DST},
		ConnectTimeout:       connectTimeout(c.mesh),
	}
	if !c.transparent {
		m.UpstreamBindConfig = c.fromSidecar()
	}
	if p.service != nil {
		// Envoy forgets destinations that were idle for 5 s, with their open connections. Those of one port are the
		// pod's few addresses.
		m.CleanupInterval = durationpb.New(24 * time.Hour)
	}
	limits := policy{pool: policyFor(ruleSpec(p.rule), nil, p.servicePort).pool}
	limits.apply(m)
	p.speak(m, limits)
	return m
}

// speak chooses the protocol of requests to the app: the declared one, and on undeclared ports what the client's side spoke.
func (p inboundPort) speak(m *cluster.Cluster, limits policy) {
	o := &upstreamhttp.HttpProtocolOptions{CommonHttpProtocolOptions: limits.commonHTTP()}
	h1, h2 := &core.Http1ProtocolOptions{}, &core.Http2ProtocolOptions{}
	switch {
	case p.protocol == mesh.ProtocolAuto:
		o.UpstreamProtocolOptions = useDownstreamProtocol(h1, h2)
	case p.protocol.IsHTTP2():
		o.UpstreamProtocolOptions = &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: h2},
			},
		}
	case o.CommonHttpProtocolOptions != nil:
		o.UpstreamProtocolOptions = &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: h1},
			},
		}
	default:
		return // HTTP/1.1 is Envoy's default
	}
	setHTTPProtocol(m, o)
}

func (c inboundContext) fromSidecar() *core.BindConfig {
	v4, v6 := tcpAddress(toAppV4, 0).GetSocketAddress(), tcpAddress(toAppV6, 0).GetSocketAddress()
	switch {
	case !c.families.v6:
		return &core.BindConfig{SourceAddress: v4}
	case !c.families.v4:
		return &core.BindConfig{SourceAddress: v6}
	}
	// Envoy takes the one of the target's family.
	return &core.BindConfig{
		SourceAddress:        v4,
		ExtraSourceAddresses: []*core.ExtraSourceAddress{{Address: v6}},
	}
}
