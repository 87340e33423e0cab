package envoy

import (
	"maps"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/weft-mesh/weft/mesh"
)

// outboundSets are what the sidecars of one class of clients need to reach the mesh; for those that ask host by host, the part
// that they all have and the part that their workload has asked for.
func (w *World) outboundSets(p Proxy) []*Set {
	s, c := w.outboundScope(p)
	if !c.lazy {
		return []*Set{s.set}
	}
	return []*Set{s.set, w.askedSet(p.Demand, s, c)}
}

// outboundScope is the class that a sidecar belongs to.
func (w *World) outboundScope(p Proxy) (*scope, client) {
	c := w.clientOf(p)
	c.inline = p.Inline
	c.lazy = p.Demand != nil && !p.Inline
	s := w.scope(outboundName(c), c, w.buildOutbound)
	if s.uses&usesLocality == 0 || p.Workload == nil || p.Workload.Locality == (mesh.Locality{}) {
		return s, c
	}
	c.locality = p.Workload.Locality
	return w.scope(outboundName(c), c, w.buildOutbound), c
}

func outboundName(c client) string {
	switch {
	case c.inline:
		return scopeName("outbound-inline", c)
	case c.lazy:
		return scopeName("on-demand", c)
	}
	return scopeName("outbound", c)
}

// outboundParts are the bundles of a scope and what was made of them together.
type outboundParts struct {
	bundles []*bundle // by host
	config  *meshconfig.MeshConfig
	index   *routeIndex
	ports   map[uint16]*sharedPort
	beside  map[string][]string // see bundle.beside

	strangers *strangers
}

func (w *World) buildOutbound(v *view, old *scope) (*Set, any) {
	parts := &outboundParts{config: v.snap.Mesh(), index: v.index}
	former, _ := old.parts.(*outboundParts)
	if former == nil {
		former = &outboundParts{}
	}
	parts.bundles = make([]*bundle, 0, len(former.bundles)+1)
	for svc := range v.snap.Services(v.client.namespace) {
		var b *bundle
		if i := len(parts.bundles); i < len(former.bundles) && former.bundles[i].svc == svc && former.bundles[i].holds(v, w.generation) {
			b = former.bundles[i] // the class of clients is the same, so this is what the pool would give
			b.used.Store(w.generation)
		} else {
			b = w.bundle(v, svc)
		}
		parts.bundles = append(parts.bundles, b)
		v.uses |= b.uses
		v.problems = append(v.problems, b.problems...)
	}
	parts.strangers = strangersOf(v, parts, former.strangers)
	v.uses |= parts.strangers.uses
	v.problems = append(v.problems, parts.strangers.problems...)
	if old.set != nil && former.config == parts.config && former.strangers == parts.strangers && slices.Equal(former.bundles, parts.bundles) {
		return old.set, former
	}
	if set := w.patched(v, old.set, former, parts); set != nil {
		return set, parts
	}

	parts.ports, parts.beside = map[uint16]*sharedPort{}, nil
	resources := []*Resource{virtualOutbound(parts.config), blackHole(parts.config), passthrough(parts.config)}
	w.pool.intern(resources)
	for _, b := range parts.bundles {
		for _, r := range b.resources {
			if !v.client.lazy || r.Type != Cluster && r.Type != Endpoints { // those are asked for
				resources = append(resources, r)
			}
		}
		for _, h := range b.vhosts {
			parts.port(h.port).hosts = append(parts.port(h.port).hosts, h.virtualHost)
		}
		for _, c := range b.chains {
			parts.port(c.port).chains = append(parts.port(c.port).chains, c)
		}
		for _, group := range b.beside {
			parts.together(group)
		}
	}
	for _, h := range parts.strangers.hosts {
		parts.port(h.port).hosts = append(parts.port(h.port).hosts, h.virtualHost)
	}
	for number, p := range parts.ports {
		p.build(v.client, parts.config, former.config, former.ports[number], w.pool)
		resources = append(resources, p.resources...)
		if !v.client.lazy && !v.client.inline {
			for _, h := range p.owners {
				if h != nil {
					resources = append(resources, h.Resource)
				}
			}
		}
	}
	return newSet(outboundName(v.client), w.snap.Version(), old.set, resources), parts
}

// together notes which clusters a request to each cluster of a group needs besides.
func (p *outboundParts) together(group []string) {
	if len(group) < 2 {
		return
	}
	if p.beside == nil {
		p.beside = map[string][]string{}
	}
	for _, c := range group {
		p.beside[c] = append(p.beside[c], group...)
	}
}

func (p *outboundParts) port(number uint16) *sharedPort {
	if p.ports[number] == nil {
		p.ports[number] = &sharedPort{number: number}
	}
	return p.ports[number]
}

// strangers are the hosts of VirtualServices that are no services, but may send requests to some.
type strangers struct {
	hosts    []portHost
	names    []string // of the services that were known
	index    *routeIndex
	reads    []read
	uses     uses
	problems []Problem
}

// strangersOf gives such hosts port 80, as Istio does. former, which may be nil, is kept when nothing changed.
func strangersOf(v *view, parts *outboundParts, former *strangers) *strangers {
	sameHost := func(name string, b *bundle) bool { return name == b.svc.Host }
	same := former != nil && slices.EqualFunc(former.names, parts.bundles, sameHost)
	if same && former.index == v.index && v.holds(former.reads) {
		return former
	}
	var names []string
	if same {
		names = former.names
	} else {
		names = make([]string, len(parts.bundles))
		for i, b := range parts.bundles {
			names[i] = b.svc.Host
		}
	}
	f := v.fork()
	out := &strangers{names: names, index: v.index}
	at := routeSite{gateway: "mesh", port: 80}
	hosts := slices.Sorted(maps.Keys(v.index.exact))
	for _, wild := range v.index.wild {
		hosts = append(hosts, wild.pattern)
	}
	for _, host := range hosts {
		vs := v.index.of(host).http
		if _, known := slices.BinarySearch(names, host); known || vs == nil || !slices.Contains(vs.Spec.GetHosts(), host) {
			continue
		}
		if routes := f.httpRoutes(vs, at); len(routes) > 0 {
			vh := newVirtualHost(vhdsName(host, at.port), []string{host}, routes, vs.Ref)
			out.hosts = append(out.hosts, portHost{at.port, vh})
		}
	}
	if former != nil {
		takeOver(former.hosts, out.hosts)
	}
	out.reads, out.uses, out.problems = f.reads, f.uses, f.problems
	return out
}

// catchAll is the virtual host for all names that nobody has: they pass, or get 502 (Istio API: MeshConfig.outboundTrafficPolicy).
func catchAll(m *meshconfig.MeshConfig, port uint16) *virtualHost {
	name := vhdsName("*", port)
	if registryOnly(m) {
		return newVirtualHost(name, []string{"*"}, routesOf(&route.Route{
			Name:   "block_all",
			Match:  matchAll(),
			Action: &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: 502}},
		}))
	}
	a := routeAction()
	a.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: passthroughCluster}
	return newVirtualHost(name, []string{"*"}, routesOf(&route.Route{
		Name:   "allow_any",
		Match:  matchAll(),
		Action: &route.Route_Route{Route: a},
	}))
}

func routesOf(rs ...*route.Route) []*route.Route { return rs }

func catchAllChain(m *meshconfig.MeshConfig) *listener.FilterChain {
	cluster := passthroughCluster
	if registryOnly(m) {
		cluster = blackHoleCluster
	}
	return &listener.FilterChain{
		Name:    "virtualOutbound-catchall-tcp",
		Filters: []*listener.Filter{tcpProxy(m, cluster, nil)},
	}
}

// virtualOutbound is where the redirect brings all connections that the app makes. It hands them to the listener of the address that
// they were going to, and takes itself those that nobody listens for.
func virtualOutbound(m *meshconfig.MeshConfig) *Resource {
	return newResource(Listener, "virtualOutbound", &listener.Listener{
		Name:             "virtualOutbound",
		Address:          dualStackAny(portOutbound), // `::` also takes 127.0.0.1, to which REDIRECT turns IPv4 connections
		UseOriginalDst:   yes(),
		TrafficDirection: core.TrafficDirection_OUTBOUND,
		AccessLog:        listenerAccessLogs(m),
		FilterChains: []*listener.FilterChain{
			{
				// Dialed by hand: passing it on would come back here.
				Name:             "virtualOutbound-blackhole",
				FilterChainMatch: &listener.FilterChainMatch{DestinationPort: u32(portOutbound)},
				Filters:          []*listener.Filter{tcpProxy(m, blackHoleCluster, nil)},
			},
			catchAllChain(m),
		},
	})
}

// scopeName is the identity of a class of clients.
func scopeName(kind string, c client) string {
	name := kind + "/" + c.namespace
	if c.class != "" {
		name += "/labels=" + c.class
	}
	if c.locality != (mesh.Locality{}) {
		name += "/" + c.locality.Region + "/" + c.locality.Zone + "/" + c.locality.SubZone
	}
	return name
}
