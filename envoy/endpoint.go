package envoy

import (
	"cmp"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

// Field numbers of endpoint.v3 and of core.v3's addresses.
const (
	fieldAssignmentCluster = 1
	fieldAssignmentGroups  = 2

	fieldGroupEndpoints = 2

	fieldEndpoint         = 1
	fieldEndpointHealth   = 2
	fieldEndpointMetadata = 3
	fieldEndpointWeight   = 4
	fieldEndpointAddress  = 1 // of what fieldEndpoint holds
	fieldEndpointHostname = 3

	fieldSocketAddress     = 1
	fieldSocketAddressIP   = 2
	fieldSocketAddressPort = 3
)

// assignment is a ClusterLoadAssignment: the ready endpoints of a port, or of one subset of it, by locality.
func (c *clusterBuilder) assignment(name string, p policy, subset *networking.Subset) []byte {
	out := &endpoint.ClusterLoadAssignment{}
	groups := map[mesh.Locality]*endpoint.LocalityLbEndpoints{}
	members := map[*endpoint.LocalityLbEndpoints][]byte{}
	for i, e := range c.endpoints {
		if !e.Ready || subset != nil && !hasLabels(e.Labels, subset.GetLabels()) {
			continue
		}
		g := groups[e.Locality]
		if g == nil {
			g = &endpoint.LocalityLbEndpoints{Locality: locality(e.Locality), LoadBalancingWeight: u32(0)}
			groups[e.Locality] = g
			out.Endpoints = append(out.Endpoints, g)
		}
		weight := max(e.Weight, 1)
		g.LoadBalancingWeight.Value += weight
		members[g] = appendEndpoint(members[g], e, weight, c.modes[i])
	}
	slices.SortFunc(out.Endpoints, func(a, b *endpoint.LocalityLbEndpoints) int {
		return cmp.Or(
			cmp.Compare(a.Locality.GetRegion(), b.Locality.GetRegion()),
			cmp.Compare(a.Locality.GetZone(), b.Locality.GetZone()),
			cmp.Compare(a.Locality.GetSubZone(), b.Locality.GetSubZone()),
		)
	})
	c.spread(out, p)
	b := appendText(nil, fieldAssignmentCluster, name)
	for _, g := range out.Endpoints {
		b = appendMessage(b, fieldAssignmentGroups, append(marshal(g), members[g]...))
	}
	return b
}

// appendEndpoint appends an LbEndpoint to its group. A weight of 1 is what Envoy takes for granted.
func appendEndpoint(b []byte, e *mesh.Endpoint, weight uint32, mode mesh.MTLSMode) []byte {
	return nest(b, fieldGroupEndpoints, func(b []byte) []byte {
		b = nest(b, fieldEndpoint, func(b []byte) []byte {
			b = nest(b, fieldEndpointAddress, func(b []byte) []byte {
				return nest(b, fieldSocketAddress, func(b []byte) []byte {
					b = appendText(b, fieldSocketAddressIP, e.Address.Unmap().String())
					return appendNumber(b, fieldSocketAddressPort, uint32(e.Port))
				})
			})
			if e.Hostname != "" {
				b = appendText(b, fieldEndpointHostname, e.Hostname)
			}
			return b
		})
		b = appendNumber(b, fieldEndpointHealth, uint32(core.HealthStatus_HEALTHY))
		if mode != mesh.MTLSDisable {
			b = nest(b, fieldEndpointMetadata, appendEndpointMetadata)
		}
		if weight != 1 {
			b = nest(b, fieldEndpointWeight, func(b []byte) []byte { return appendNumber(b, fieldWrapped, weight) })
		}
		return b
	})
}

func locality(l mesh.Locality) *core.Locality {
	if l == (mesh.Locality{}) {
		return nil
	}
	return &core.Locality{Region: l.Region, Zone: l.Zone, SubZone: l.SubZone}
}

// appendEndpointMetadata tells the cluster that the endpoint takes mesh TLS. Istio also says whose the endpoint is ("istio": {"workload": ...}), for
// the client's metrics. It would be a sixth of all that a proxy is sent, so it waits for somebody who reads it.
func appendEndpointMetadata(b []byte) []byte {
	return appendEntry(b, fieldFilterMetadata, "envoy.transport_socket_match", appendTLSMode)
}

// appendTLSMode is what endpoints that take mesh TLS have, and clusters look for.
func appendTLSMode(b []byte) []byte { return appendStringField(b, "tlsMode", "istio") }
