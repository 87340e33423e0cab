package envoy

import (
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/weft-mesh/weft/mesh"
)

// listen makes the listener of one address, with its routes.
func (b *gatewayBuilder) listen(key listenerKey, servers []*gatewayServer) {
	l := &listener.Listener{
		Name:             key.listenerName(),
		Address:          anyAddress(uint32(key.port), b.families),
		TrafficDirection: core.TrafficDirection_OUTBOUND,
		AccessLog:        listenerAccessLogs(b.mesh()),
	}
	if key.bind != "" {
		l.Address = tcpAddress(key.bind, uint32(key.port))
	}
	if b.topology.GetProxyProtocol() != nil {
		l.ListenerFilters = append(l.ListenerFilters, readProxyProtocol())
	}
	var causes []mesh.Ref
	for _, s := range servers {
		causes = append(causes, s.gateway.Ref)
	}
	switch servers[0].kind {
	case servesHTTP:
		name := "http." + portName(key.port)
		if key.bind != "" {
			name += "." + key.bind
		}
		l.FilterChains = []*listener.FilterChain{{Filters: []*listener.Filter{b.requests(name, l.Name)}}}
		b.add(b.gatewayRoutes(name, servers))
	case servesTLS:
		l.ListenerFilters = append(l.ListenerFilters, inspectTLS())
		l.FilterChains = b.tlsChains(l.Name, servers)
	case servesTCP:
		l.FilterChains = b.tcpChains(servers[0])
	}
	if len(l.FilterChains) == 0 {
		return // nothing to do with a connection: the port stays closed
	}
	b.add(newResource(Listener, l.Name, l, causes...))
}

// requests reads the requests of clients outside of the mesh, whose headers nobody vouches for.
func (b *gatewayBuilder) requests(routes, listenerName string) *listener.Filter {
	m := serverRequests(b.mesh(), "outbound_"+listenerName)
	m.UseRemoteAddress = yes()
	m.XffNumTrustedHops = b.topology.GetNumTrustedProxies()
	m.ForwardClientCertDetails = forwardClientCert(b.topology.GetForwardClientCertDetails())
	m.SetCurrentClientCertDetails = &hcm.HttpConnectionManager_SetCurrentClientCertDetails{
		Subject: yes(),
		Cert:    true,
		Uri:     true,
		Dns:     true,
	}
	m.RouteSpecifier = routeByRDS(routes)
	m.HttpFilters = clientHTTPFilters()
	return networkFilter(hcmName, m)
}

// A gatewayHost is one virtual host in the making.
type gatewayHost struct {
	routes []*route.Route
	from   []hostSource
	secure bool // plaintext is redirected to https
	causes []mesh.Ref
}

// hostSource is a VirtualService behind a Gateway: servers of one Gateway that share a port would use it twice.
type hostSource struct {
	vs      *mesh.VirtualService
	gateway *mesh.Gateway
}

// gatewayRoutes is the RouteConfiguration of servers that share it. VirtualServices of one host are joined, the oldest first, except that
// routes which take everything come last. (Istio: "Split large virtual services".)
func (b *gatewayBuilder) gatewayRoutes(name string, servers []*gatewayServer) *Resource {
	hosts := map[string]*gatewayHost{}
	at := func(host string) *gatewayHost {
		if hosts[host] == nil {
			hosts[host] = &gatewayHost{}
		}
		return hosts[host]
	}
	for _, s := range servers {
		redirect := s.kind == servesHTTP && s.GetTls().GetHttpsRedirect()
		for _, vs := range b.virtualServices(s) {
			if len(vs.Spec.GetHttp()) == 0 {
				continue
			}
			served := s.serves(vs.Namespace, vs.Spec.GetHosts())
			if len(served) == 0 {
				continue
			}
			routes := b.httpRoutes(vs, b.site(s, s.kind == servesTLS))
			for _, host := range served {
				h, source := at(host), hostSource{vs, s.gateway}
				if slices.Contains(h.from, source) {
					continue
				}
				h.from = append(h.from, source)
				h.routes = append(h.routes, routes...)
				h.causes = append(h.causes, vs.Ref, s.gateway.Ref)
				h.secure = h.secure || redirect
			}
		}
		if redirect { // also hosts that nobody routes yet
			for _, host := range s.hostNames() {
				at(host).secure = true
				at(host).causes = append(at(host).causes, s.gateway.Ref)
			}
		}
	}
	port := servers[0].number()
	if len(hosts) == 0 {
		return routeTable(name, []*virtualHost{newVirtualHost("blackhole:"+portName(port), []string{"*"}, nil)})
	}
	var out []*virtualHost
	for host, h := range hosts {
		out = append(out, h.virtualHost(host, port))
	}
	slices.SortFunc(out, func(a, b *virtualHost) int { return strings.Compare(a.Name, b.Name) })
	return routeTable(name, out)
}

func (h *gatewayHost) virtualHost(host string, port uint16) *virtualHost {
	slices.SortStableFunc(h.routes, func(x, y *route.Route) int { return rank(x) - rank(y) })
	m := &route.VirtualHost{
		Name:                       virtualHostName(host, port),
		Domains:                    []string{host},
		Routes:                     h.routes,
		IncludeRequestAttemptCount: true,
	}
	if h.secure {
		m.RequireTls = route.VirtualHost_ALL
	}
	return virtualHostOf(m, h.causes...)
}

func rank(r *route.Route) int {
	if takesAll(r.GetMatch()) {
		return 1
	}
	return 0
}
