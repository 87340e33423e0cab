package envoy

import (
	"cmp"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

// assignment lists the ready endpoints of a port, or of one subset of it, by locality.
func (c *clusterBuilder) assignment(name string, p policy, subset *networking.Subset) *endpoint.ClusterLoadAssignment {
	out := &endpoint.ClusterLoadAssignment{ClusterName: name}
	groups := map[mesh.Locality]*endpoint.LocalityLbEndpoints{}
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
		g.LbEndpoints = append(g.LbEndpoints, &endpoint.LbEndpoint{
			HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
				Address:  ipAddress(e.Address, e.Port),
				Hostname: e.Hostname,
			}},
			HealthStatus:        core.HealthStatus_HEALTHY,
			LoadBalancingWeight: endpointWeight(weight),
			Metadata:            endpointMetadata(e, c.modes[i]),
		})
	}
	slices.SortFunc(out.Endpoints, func(a, b *endpoint.LocalityLbEndpoints) int {
		return cmp.Or(
			cmp.Compare(a.Locality.GetRegion(), b.Locality.GetRegion()),
			cmp.Compare(a.Locality.GetZone(), b.Locality.GetZone()),
			cmp.Compare(a.Locality.GetSubZone(), b.Locality.GetSubZone()),
		)
	})
	c.spread(out, p)
	return out
}

// endpointWeight leaves out what Envoy takes for granted.
func endpointWeight(w uint32) *wrapperspb.UInt32Value {
	if w == 1 {
		return nil
	}
	return u32(w)
}

func locality(l mesh.Locality) *core.Locality {
	if l == (mesh.Locality{}) {
		return nil
	}
	return &core.Locality{Region: l.Region, Zone: l.Zone, SubZone: l.SubZone}
}

// endpointMetadata tells the cluster whether the endpoint takes mesh TLS, and telemetry whose it is, as Istio writes it:
// "workload;namespace;canonical service;canonical revision;cluster".
func endpointMetadata(e *mesh.Endpoint, mode mesh.MTLSMode) *core.Metadata {
	m := &core.Metadata{FilterMetadata: map[string]*structpb.Struct{}}
	if mode != mesh.MTLSDisable {
		m.FilterMetadata["envoy.transport_socket_match"] = &structpb.Struct{
			Fields: map[string]*structpb.Value{"tlsMode": structpb.NewStringValue("istio")},
		}
	}
	if w := e.Workload; w != nil {
		owner := w.Owner
		if owner == "" {
			owner = w.Name
		}
		m.FilterMetadata["istio"] = &structpb.Struct{Fields: map[string]*structpb.Value{
			"workload": structpb.NewStringValue(owner + ";" + w.Namespace + ";" + canonicalName(w) + ";" + canonicalRevision(w) + ";Kubernetes"),
		}}
	}
	if len(m.FilterMetadata) == 0 {
		return nil
	}
	return m
}

func canonicalName(w *mesh.Workload) string {
	return cmp.Or(w.Labels["service.istio.io/canonical-name"], w.Labels["app.kubernetes.io/name"], w.Labels["app"], w.Owner, w.Name)
}

func canonicalRevision(w *mesh.Workload) string {
	return cmp.Or(w.Labels["service.istio.io/canonical-revision"], w.Labels["app.kubernetes.io/version"], w.Labels["version"], "latest")
}
