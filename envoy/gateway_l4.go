package envoy

import (
	"slices"
	"strconv"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

func portName(number uint16) string { return strconv.Itoa(int(number)) }

// tcpChains takes all connections of a TCP server's port.
func (b *gatewayBuilder) tcpChains(s *gatewayServer) []*listener.FilterChain {
	filters := b.tcpFilters(s)
	if filters == nil {
		return nil
	}
	return []*listener.FilterChain{{Filters: filters}}
}

// tcpFilters passes bytes to where the first matching spec.tcp route of a VirtualService says; nil when there is none.
func (b *gatewayBuilder) tcpFilters(s *gatewayServer) []*listener.Filter {
	at := b.site(s, s.kind == servesTLS)
	for _, vs := range b.virtualServices(s) {
		if len(s.serves(vs.Namespace, vs.Spec.GetHosts())) == 0 {
			continue
		}
		for i, r := range vs.Spec.GetTcp() {
			if len(r.GetMatch()) > 0 && !slices.ContainsFunc(r.GetMatch(), func(m *networking.L4MatchAttributes) bool {
				return atGateway(m.GetPort(), m.GetGateways(), at)
			}) {
				continue
			}
			clusters := b.l4Clusters(vs.Ref, "spec.tcp["+strconv.Itoa(i)+"]", r.GetRoute(), at)
			return []*listener.Filter{tcpSplit(b.mesh(), vs.Name+"."+vs.Namespace, clusters, nil)}
		}
	}
	return nil
}

// An sniRoute leads connections with some server names to clusters.
type sniRoute struct {
	vs      *mesh.VirtualService
	field   string
	names   []string
	filters []*listener.Filter
}

// sniRoutes are the spec.tls routes behind a PASSTHROUGH server.
func (b *gatewayBuilder) sniRoutes(s *gatewayServer) []sniRoute {
	var out []sniRoute
	at := b.site(s, true)
	for _, vs := range b.virtualServices(s) {
		for i, r := range vs.Spec.GetTls() {
			field := "spec.tls[" + strconv.Itoa(i) + "]"
			for j, m := range r.GetMatch() {
				if !atGateway(m.GetPort(), m.GetGateways(), at) {
					continue
				}
				names := s.serves(vs.Namespace, m.GetSniHosts())
				if len(names) == 0 {
					continue
				}
				clusters := b.l4Clusters(vs.Ref, field, r.GetRoute(), at)
				out = append(out, sniRoute{
					vs:      vs,
					field:   field + ".match[" + strconv.Itoa(j) + "].sniHosts",
					names:   names,
					filters: []*listener.Filter{tcpSplit(b.mesh(), vs.Name+"."+vs.Namespace, clusters, nil)},
				})
			}
		}
	}
	return out
}

// atGateway reports whether the port and gateways of an L4 match, each empty for any, include the site.
func atGateway(port uint32, gateways []string, at routeSite) bool {
	return (port == 0 || port == uint32(at.port)) && (len(gateways) == 0 || slices.Contains(gateways, at.gateway))
}
