package envoy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

// spread applies locality load balancing for the client's locality: weights by `distribute`, else priorities, near ones
// first. Priorities need outlier detection: without it Envoy would never learn that near endpoints fail.
// (Istio API: LocalityLoadBalancerSetting.)
func (c *clusterBuilder) spread(a *endpoint.ClusterLoadAssignment, p policy) {
	setting := c.localitySetting(p)
	if setting == nil || len(a.Endpoints) == 0 {
		return
	}
	if len(setting.GetDistribute()) == 0 && p.outlier == nil {
		return
	}
	c.uses |= usesLocality
	from := c.client.locality
	if from == (mesh.Locality{}) {
		return
	}
	for _, d := range setting.GetDistribute() {
		if localityMatches(d.GetFrom(), from) {
			distribute(a, d.GetTo())
			return
		}
	}
	if p.outlier == nil {
		return
	}
	for _, g := range a.Endpoints {
		g.Priority = distance(from, localityOf(g), setting.GetFailover())
	}
	compactPriorities(a)
}

// localitySetting is nil when locality load balancing is off for the cluster.
func (c *clusterBuilder) localitySetting(p policy) *networking.LocalityLoadBalancerSetting {
	s := p.lb.GetLocalityLbSetting()
	if s == nil {
		s = c.config.GetLocalityLbSetting()
	}
	if s == nil {
		return nil
	}
	if e := s.GetEnabled(); e != nil && !e.GetValue() {
		return nil
	}
	return s
}

func localityOf(g *endpoint.LocalityLbEndpoints) mesh.Locality {
	l := g.GetLocality()
	return mesh.Locality{Region: l.GetRegion(), Zone: l.GetZone(), SubZone: l.GetSubZone()}
}

// localityMatches: "us-west/*", "us-west/zone1/*", "us-west/zone1/rack2", "*".
func localityMatches(pattern string, l mesh.Locality) bool {
	have := [...]string{l.Region, l.Zone, l.SubZone}
	for i, want := range strings.SplitN(pattern, "/", 3) {
		if want == "*" {
			return true
		}
		if want != have[i] {
			return false
		}
	}
	return true
}

// distribute gives each listed locality its share, divided among the groups it covers by their own weights; others get none.
func distribute(a *endpoint.ClusterLoadAssignment, to map[string]uint32) {
	// The most specific pattern takes a locality.
	patterns := slices.SortedFunc(maps.Keys(to), func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(a, "*"), strings.Count(b, "*")), cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
	})
	covered := map[string][]*endpoint.LocalityLbEndpoints{}
	total := map[string]uint32{}
	for _, g := range a.Endpoints {
		for _, p := range patterns {
			if localityMatches(p, localityOf(g)) {
				covered[p] = append(covered[p], g)
				total[p] += g.LoadBalancingWeight.GetValue()
				break
			}
		}
	}
	var kept []*endpoint.LocalityLbEndpoints
	for _, g := range a.Endpoints {
		for _, p := range patterns {
			if !slices.Contains(covered[p], g) {
				continue
			}
			// Thousandths, so that a share divided among many groups stays above zero.
			if w := to[p] * 1000 * g.LoadBalancingWeight.GetValue() / total[p]; w > 0 {
				g.LoadBalancingWeight = u32(w)
				kept = append(kept, g)
			}
		}
	}
	a.Endpoints = kept
}

// distance is the priority of endpoints: same sub-zone, zone, region, the region to fail over to, the rest.
func distance(from, to mesh.Locality, failover []*networking.LocalityLoadBalancerSetting_Failover) uint32 {
	switch {
	case from == to:
		return 0
	case from.Region == to.Region && from.Zone == to.Zone:
		return 1
	case from.Region == to.Region:
		return 2
	}
	for _, f := range failover {
		if f.GetFrom() == from.Region {
			if f.GetTo() == to.Region {
				return 3
			}
			return 4
		}
	}
	return 3
}

// compactPriorities renumbers from zero without gaps, as Envoy demands.
func compactPriorities(a *endpoint.ClusterLoadAssignment) {
	used := map[uint32]bool{}
	for _, g := range a.Endpoints {
		used[g.Priority] = true
	}
	rank := map[uint32]uint32{}
	for i, p := range slices.Sorted(maps.Keys(used)) {
		rank[p] = uint32(i)
	}
	for _, g := range a.Endpoints {
		g.Priority = rank[g.Priority]
	}
}

// weighLocalities makes Envoy honour the weights of localities; without it they are informative only.
func (c *clusterBuilder) weighLocalities(m *cluster.Cluster, p policy) {
	if s := c.localitySetting(p); len(s.GetDistribute()) == 0 || m.LbPolicy == cluster.Cluster_CLUSTER_PROVIDED {
		return
	}
	if m.CommonLbConfig == nil {
		m.CommonLbConfig = &cluster.Cluster_CommonLbConfig{}
	}
	m.CommonLbConfig.LocalityConfigSpecifier = &cluster.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
		LocalityWeightedLbConfig: &cluster.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
	}
}
