package envoy

import (
	"maps"
	"slices"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/weft-mesh/weft/mesh"
)

// outboundSet is what the sidecars of one class of clients need to reach the mesh.
func (w *World) outboundSet(p Proxy) *Set {
	c := w.clientOf(p)
	s := w.scope(scopeName("outbound", c), c, w.buildOutbound)
	if s.uses&usesLocality == 0 || p.Workload == nil || p.Workload.Locality == (mesh.Locality{}) {
		return s.set
	}
	c.locality = p.Workload.Locality
	return w.scope(scopeName("outbound", c), c, w.buildOutbound).set
}

// outboundParts are the bundles of a scope and what was made of them together.
type outboundParts struct {
	bundles []*bundle
	config  *meshconfig.MeshConfig
	index   *routeIndex
	ports   map[uint16]*sharedPort

	strangers *strangers
}

// A sharedPort is a port on which several hosts take connections.
type sharedPort struct {
	hosts     []*virtualHost
	chains    []sharedChain
	resources []*Resource
}

func (w *World) buildOutbound(v *view, old *scope) (*Set, any) {
	parts := &outboundParts{config: v.snap.Mesh(), index: v.index, ports: map[uint16]*sharedPort{}}
	for svc := range v.snap.Services(v.client.namespace) {
		b := w.bundle(v, svc)
		parts.bundles = append(parts.bundles, b)
		v.uses |= b.uses
		v.problems = append(v.problems, b.problems...)
	}
	former, _ := old.parts.(*outboundParts)
	if former == nil {
		former = &outboundParts{}
	}
	parts.strangers = strangersOf(v, parts, former.strangers)
	v.uses |= parts.strangers.uses
	v.problems = append(v.problems, parts.strangers.problems...)
	if old.set != nil && former.config == parts.config && former.strangers == parts.strangers && slices.Equal(former.bundles, parts.bundles) {
		return old.set, former
	}

	resources := []*Resource{virtualOutbound(parts.config), blackHole(parts.config), passthrough(parts.config)}
	w.pool.intern(resources)
	for _, b := range parts.bundles {
		resources = append(resources, b.resources...)
		for _, h := range b.vhosts {
			parts.port(h.port).hosts = append(parts.port(h.port).hosts, h.virtualHost)
		}
		for _, c := range b.chains {
			parts.port(c.port).chains = append(parts.port(c.port).chains, c)
		}
	}
	for _, h := range parts.strangers.hosts {
		parts.port(h.port).hosts = append(parts.port(h.port).hosts, h.virtualHost)
	}
	for number, p := range parts.ports {
		f := former.ports[number]
		if f != nil && former.config == parts.config && slices.Equal(f.hosts, p.hosts) &&
			slices.EqualFunc(f.chains, p.chains, sharedChain.equal) {
			p.resources = f.resources
		} else {
			p.build(number, parts.config)
			w.pool.intern(p.resources)
		}
		resources = append(resources, p.resources...)
	}
	return newSet(scopeName("outbound", v.client), w.snap.Version(), old.set, resources), parts
}

func (p *outboundParts) port(number uint16) *sharedPort {
	if p.ports[number] == nil {
		p.ports[number] = &sharedPort{}
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
	names := make([]string, len(parts.bundles))
	for i, b := range parts.bundles {
		names[i] = b.svc.Host
	}
	if former != nil && former.index == v.index && slices.Equal(former.names, names) && v.holds(former.reads) {
		return former
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
			vh := newVirtualHost(virtualHostName(host, at.port), []string{host}, routes, vs.Ref)
			out.hosts = append(out.hosts, portHost{at.port, vh})
		}
	}
	if former != nil {
		takeOver(former.hosts, out.hosts)
	}
	out.reads, out.uses, out.problems = f.reads, f.uses, f.problems
	return out
}

// build makes the listener and the routes of a shared port.
func (p *sharedPort) build(number uint16, m *meshconfig.MeshConfig) {
	if slices.Contains(sidecarPorts, number) {
		return // the sidecar's own listeners are there
	}
	name := strconv.Itoa(int(number))
	l := outboundListener(m, "0.0.0.0_"+name, tcpAddress("0.0.0.0", uint32(number)))
	l.AdditionalAddresses = []*listener.AdditionalAddress{{Address: tcpAddress("::", uint32(number))}}
	l.DefaultFilterChain = catchAllChain(m)
	var refs []mesh.Ref
	if len(p.hosts) > 0 {
		table := routeTable(name, append(slices.Clone(p.hosts), catchAll(m)))
		for _, c := range table.Causes {
			if c.Kind == "Service" {
				refs = append(refs, c)
			}
		}
		p.resources = append(p.resources, table)
		l.FilterChains = append(l.FilterChains, httpChain(outboundHTTP(m, "outbound_"+l.Name, name)))
	}
	taken := map[string]bool{}
	for _, c := range p.chains {
		chain := &listener.FilterChain{}
		if proto.Unmarshal(c.body, chain) != nil {
			continue // not reached: body came from marshal
		}
		if c.last {
			l.DefaultFilterChain = chain
			continue
		}
		// Two chains that ask for the same server name make Envoy refuse the listener.
		m := chain.FilterChainMatch
		if len(m.ServerNames) == 0 { // all names
			if !taken["*"] {
				taken["*"] = true
				l.FilterChains = append(l.FilterChains, chain)
			}
			continue
		}
		m.ServerNames = slices.DeleteFunc(m.ServerNames, func(n string) bool { return taken[n] })
		if len(m.ServerNames) == 0 {
			continue
		}
		for _, n := range m.ServerNames {
			taken[n] = true
		}
		l.FilterChains = append(l.FilterChains, chain)
	}
	if len(l.FilterChains) > 0 {
		// The port is declared HTTP or takes only TLS, so clients speak first and may take their time; unless the default is
		// somebody's TCP.
		patience := m.GetProtocolDetectionTimeout().AsDuration()
		if slices.ContainsFunc(p.chains, func(c sharedChain) bool { return c.last }) {
			patience = sniffPatience(m)
		}
		sniff(l, patience)
	}
	r := newResource(Listener, l.Name, l)
	r.Causes = refs // in the order of the table, each once
	p.resources = append(p.resources, r)
}

// catchAll is the virtual host for all names that nobody has: they pass, or get 502 (Istio API: MeshConfig.outboundTrafficPolicy).
func catchAll(m *meshconfig.MeshConfig) *virtualHost {
	if registryOnly(m) {
		return newVirtualHost("block_all", []string{"*"}, routesOf(&route.Route{
			Name:   "block_all",
			Match:  matchAll(),
			Action: &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: 502}},
		}))
	}
	a := routeAction()
	a.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: passthroughCluster}
	return newVirtualHost("allow_any", []string{"*"}, routesOf(&route.Route{
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
