package envoy

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	tlsinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

// A sharedChain is a filter chain of one host in the listener of a port that several hosts share.
type sharedChain struct {
	port uint16
	name string
	body []byte // listener.FilterChain
	last bool   // matches everything: becomes the default
}

func (c sharedChain) equal(o sharedChain) bool {
	return c.port == o.port && c.name == o.name && c.last == o.last && bytes.Equal(c.body, o.body)
}

// listen adds what brings connections and requests of a sidecar's app to the host's clusters.
//
//   - HTTP: a virtual host in the routes of the port, whose listener 0.0.0.0_PORT all hosts share.
//   - Anything else with a virtual IP: a listener of its own for VIP_PORT. When the protocol is not declared, it looks
//     at the first bytes.
//   - Without one (headless, STATIC service entries): a listener for each endpoint, because that is what clients dial.
//   - Names outside (ExternalName, DNS and NONE service entries): HTTP as above, TLS by SNI.
func (h *hostBuilder) listen(p mesh.Port) {
	if p.Protocol.IsHTTP() {
		h.httpPort(p)
		return
	}
	if len(h.svc.Addresses) > 0 {
		h.ownListener(p, h.svc.Addresses, p.Number)
		return
	}
	if h.svc.Resolution != mesh.ResolutionDNS {
		endpoints := h.endpoints(h.svc, p)
		for _, e := range endpoints {
			h.ownListener(p, []netip.Addr{e.Address}, e.Port)
		}
		if len(endpoints) > 0 || !h.svc.External {
			return
		}
	}
	switch p.Protocol {
	case mesh.ProtocolAuto:
		h.httpPort(p)
		h.bySNI(p)
	case mesh.ProtocolTCP:
		h.anyAddress(p)
	default:
		h.bySNI(p)
	}
}

// httpPort adds the virtual host of a port.
func (h *hostBuilder) httpPort(p mesh.Port) {
	vh := h.virtualHost(p, vhdsName(h.svc.Host, p.Number), hostDomains(h.svc, h.client.namespace, h.snap.ClusterDomain()))
	h.out.vhosts = append(h.out.vhosts, portHost{p.Number, vh})
	if h.svc.Resolution == mesh.ResolutionHeadless && p.TargetPort != 0 && p.TargetPort != p.Number {
		// No address translation stands between the client and the pod: what can be dialed is the pod's port.
		h.out.vhosts = append(h.out.vhosts, portHost{p.TargetPort, vh.as(vhdsName(h.svc.Host, p.TargetPort), vh.domains, vh.Causes...)})
	}
}

func (h *hostBuilder) virtualHost(p mesh.Port, name string, domains []string) *virtualHost {
	svc := h.alias()
	vs := h.routed.http
	if vs == nil && svc != h.svc {
		vs = h.routes(svc.Host).http
	}
	refs := []mesh.Ref{h.svc.Ref}
	at := routeSite{gateway: "mesh", port: p.Number}
	if vs != nil {
		if routes := h.httpRoutes(vs, at); len(routes) > 0 {
			return newVirtualHost(name, domains, routes, append(refs, vs.Ref)...)
		}
		// Nothing in it is for this port or this client.
	}
	cluster, policy := h.defaultCluster(p)
	return newVirtualHost(name, domains, routesOf(h.defaultRoute("default", cluster, policy)), refs...)
}

// defaultCluster is where a port leads when no VirtualService says otherwise.
func (h *hostBuilder) defaultCluster(p mesh.Port) (string, policy) {
	svc, rule := h.svc, h.rule
	if a := h.alias(); a != svc {
		svc, rule = a, h.view.rule(a)
	}
	return clusterName(p.Number, "", svc.Host), policyFor(ruleSpec(rule), nil, p.Number)
}

// ownListener listens on addresses that only this host has.
func (h *hostBuilder) ownListener(p mesh.Port, addresses []netip.Addr, port uint16) {
	l := h.listener(addresses[0].Unmap().String()+"_"+strconv.Itoa(int(port)), ipAddress(addresses[0], port))
	for _, a := range addresses[1:] {
		l.AdditionalAddresses = append(l.AdditionalAddresses, &listener.AdditionalAddress{Address: ipAddress(a, port)})
	}
	chains := h.l4Chains(p)
	switch p.Protocol {
	case mesh.ProtocolAuto:
		h.uses |= usesDiscovery
		routeName := virtualHostName(h.svc.Host, p.Number)
		if !slices.ContainsFunc(h.resources, func(r *Resource) bool { return r.Type == Route && r.Name == routeName }) {
			// The address says which host is meant, whatever the Host header says.
			vh := h.virtualHost(p, routeName, []string{"*"})
			h.add(routeTable(routeName, []*virtualHost{vh}))
			h.out.beside = append(h.out.beside, vh.clusters)
		}
		sniff(l, sniffPatience(h.config))
		l.FilterChains = []*listener.FilterChain{httpChain(h.client.outboundHTTP(h.config, "outbound_"+l.Name, routeName))}
		last := chains[len(chains)-1]
		last.Filters = append([]*listener.Filter{sayTCP()}, last.Filters...)
	case mesh.ProtocolTLS, mesh.ProtocolHTTPS:
		if len(chains) > 1 {
			l.ListenerFilters = []*listener.ListenerFilter{inspectTLS()}
		}
	}
	l.FilterChains = append(l.FilterChains, chains[:len(chains)-1]...)
	l.DefaultFilterChain = chains[len(chains)-1]
	refs := h.refs()
	for _, vs := range []*mesh.VirtualService{h.routed.tls, h.routed.tcp} {
		if vs != nil {
			refs = append(refs, vs.Ref)
		}
	}
	h.add(newResource(Listener, l.Name, l, refs...))
}

// l4Chains are the filter chains for connections that are passed on as bytes; the last one takes everything.
func (h *hostBuilder) l4Chains(p mesh.Port) []*listener.FilterChain {
	cluster, policy := h.defaultCluster(p)
	idle := policy.tcp().GetIdleTimeout()
	at := routeSite{gateway: "mesh", port: p.Number}
	var chains []*listener.FilterChain
	if vs := h.routed.tls; vs != nil && (p.Protocol == mesh.ProtocolTLS || p.Protocol == mesh.ProtocolHTTPS) {
		for i, t := range vs.Spec.GetTls() {
			field := "spec.tls[" + strconv.Itoa(i) + "]"
			for j, m := range t.GetMatch() {
				if bad := slices.IndexFunc(m.GetSniHosts(), func(n string) bool { return !isServerName(n) }); bad >= 0 {
					h.problem(vs.Ref, fmt.Sprintf("%s.match[%d].sniHosts[%d]", field, j, bad), fmt.Sprintf(
						"%q is no server name that can be matched: a wildcard stands for whole labels, as in *.example.com. Until it is corrected the match is left out",
						m.GetSniHosts()[bad]))
					continue
				}
				if !h.l4Applies(at, m.GetPort(), m.GetGateways(), m.GetSourceNamespace(), m.GetSourceLabels()) {
					continue
				}
				chain := &listener.FilterChain{
					FilterChainMatch: &listener.FilterChainMatch{
						TransportProtocol: transportTLS,
						ServerNames:       serverNames(m.GetSniHosts()),
						PrefixRanges:      prefixes(m.GetDestinationSubnets()),
					},
					Filters: []*listener.Filter{h.tcpSplit(h.config, cluster, h.l4Clusters(vs.Ref, field, t.GetRoute(), at), idle)},
				}
				if !hasMatch(chains, chain.FilterChainMatch) {
					chains = append(chains, chain)
				}
			}
		}
	}
	last := &listener.FilterChain{Filters: []*listener.Filter{h.tcpProxy(h.config, cluster, idle)}}
	if vs := h.routed.tcp; vs != nil {
		chains, last = h.tcpChains(chains, last, vs, at, cluster, idle)
	}
	return append(chains, last)
}

func (h *hostBuilder) tcpChains(
	chains []*listener.FilterChain, last *listener.FilterChain, vs *mesh.VirtualService, at routeSite, stat string, idle *durationpb.Duration,
) ([]*listener.FilterChain, *listener.FilterChain) {
	for i, t := range vs.Spec.GetTcp() {
		field := "spec.tcp[" + strconv.Itoa(i) + "]"
		matches := t.GetMatch()
		if len(matches) == 0 {
			matches = []*networking.L4MatchAttributes{nil}
		}
		for _, m := range matches {
			if !h.l4Applies(at, m.GetPort(), m.GetGateways(), m.GetSourceNamespace(), m.GetSourceLabels()) {
				continue
			}
			clusters := h.l4Clusters(vs.Ref, field, t.GetRoute(), at)
			if len(clusters) == 0 {
				continue
			}
			chain := &listener.FilterChain{Filters: []*listener.Filter{h.tcpSplit(h.config, stat, clusters, idle)}}
			if ranges := prefixes(m.GetDestinationSubnets()); len(ranges) > 0 {
				chain.FilterChainMatch = &listener.FilterChainMatch{PrefixRanges: ranges}
				if !hasMatch(chains, chain.FilterChainMatch) {
					chains = append(chains, chain)
				}
				continue
			}
			return chains, chain
		}
	}
	return chains, last
}

func (v *view) l4Applies(at routeSite, port uint32, gateways []string, namespace string, labels map[string]string) bool {
	if port != 0 && port != uint32(at.port) || len(gateways) > 0 && !slices.Contains(gateways, at.gateway) {
		return false
	}
	return at.gateway != "mesh" || v.cameFrom(namespace, labels)
}

// isServerName: Envoy refuses a listener with other wildcards.
func isServerName(n string) bool {
	return n == "*" || n != "" && !strings.Contains(strings.TrimPrefix(n, "*."), "*")
}

// serverNames: Envoy writes "any" as no name at all.
func serverNames(hosts []string) []string {
	if slices.Contains(hosts, "*") {
		return nil
	}
	out := slices.Clone(hosts)
	slices.Sort(out)
	return slices.Compact(out)
}

// prefixes leaves out what is no CIDR or address.
func prefixes(subnets []string) []*core.CidrRange {
	var out []*core.CidrRange
	for _, s := range subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil {
				continue
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		p = p.Masked()
		out = append(out, &core.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: u32(uint32(p.Bits()))})
	}
	return out
}

// hasMatch: two chains of one listener with the same match make Envoy refuse it.
func hasMatch(chains []*listener.FilterChain, m *listener.FilterChainMatch) bool {
	want := marshal(m)
	return slices.ContainsFunc(chains, func(c *listener.FilterChain) bool {
		return c.FilterChainMatch != nil && bytes.Equal(marshal(c.FilterChainMatch), want)
	})
}

// bySNI takes TLS connections to a host that has no address of its own by the name they ask for.
func (h *hostBuilder) bySNI(p mesh.Port) {
	names := []string{h.svc.Host}
	if h.svc.ExternalName != "" && h.svc.ExternalName != h.svc.Host {
		names = append(names, h.svc.ExternalName)
	}
	cluster, policy := h.defaultCluster(p)
	h.share(p, false, &listener.FilterChain{
		Name:             virtualHostName(h.svc.Host, p.Number),
		FilterChainMatch: &listener.FilterChainMatch{TransportProtocol: transportTLS, ServerNames: serverNames(names)},
		Filters:          []*listener.Filter{h.tcpProxy(h.config, cluster, policy.tcp().GetIdleTimeout())},
	})
}

// anyAddress takes all connections to a port, for a host whose addresses nobody knows. Where unknown destinations are allowed this is
// not needed, and would lead connections to other hosts astray.
func (h *hostBuilder) anyAddress(p mesh.Port) {
	if !registryOnly(h.config) {
		return
	}
	cluster, policy := h.defaultCluster(p)
	h.share(p, true, &listener.FilterChain{
		Name:    virtualHostName(h.svc.Host, p.Number),
		Filters: []*listener.Filter{h.tcpProxy(h.config, cluster, policy.tcp().GetIdleTimeout())},
	})
}

func (h *hostBuilder) share(p mesh.Port, last bool, c *listener.FilterChain) {
	h.out.chains = append(h.out.chains, sharedChain{port: p.Number, name: c.Name, body: marshal(c), last: last})
}

// listener is never bound: virtualOutbound hands it the connections that were going to its address.
func (h *hostBuilder) listener(name string, address *core.Address) *listener.Listener {
	return outboundListener(h.config, name, address)
}

func outboundListener(m *meshconfig.MeshConfig, name string, address *core.Address) *listener.Listener {
	return &listener.Listener{
		Name:             name,
		Address:          address,
		TrafficDirection: core.TrafficDirection_OUTBOUND,
		BindToPort:       no(),
		AccessLog:        listenerAccessLogs(m),
	}
}

// sniff looks at the first bytes of connections. A client that says nothing for the given time is taken for one whose server speaks first;
// zero waits for ever.
func sniff(l *listener.Listener, patience time.Duration) {
	l.ListenerFilters = []*listener.ListenerFilter{inspectTLS(), inspectHTTP()}
	l.ListenerFiltersTimeout = durationpb.New(patience)
	l.ContinueOnListenerFiltersTimeout = true
}

func inspectTLS() *listener.ListenerFilter {
	return listenerFilter("envoy.filters.listener.tls_inspector", tlsInspector(), nil)
}

// tlsInspector reads a hello of ordinary size without a buffer for the largest there can be, which Envoy would allocate for each connection.
func tlsInspector() *tlsinspector.TlsInspector {
	return &tlsinspector.TlsInspector{InitialReadBufferSize: u32(512)}
}

func inspectHTTP() *listener.ListenerFilter {
	return listenerFilter("envoy.filters.listener.http_inspector", &httpinspector.HttpInspector{}, nil)
}

// sniffPatience is MeshConfig.protocolDetectionTimeout. Its default in Istio, zero, makes a client of MySQL or SMTP on an undeclared port
// hang for ever; here it waits a second and goes on as TCP to the same service.
func sniffPatience(m *meshconfig.MeshConfig) time.Duration {
	if d := m.GetProtocolDetectionTimeout().AsDuration(); d > 0 {
		return d
	}
	return sniffTimeout
}

// httpChain takes connections on which plaintext HTTP was seen.
func httpChain(filters ...*listener.Filter) *listener.FilterChain {
	return &listener.FilterChain{
		FilterChainMatch: &listener.FilterChainMatch{TransportProtocol: transportRaw, ApplicationProtocols: alpnPlainHTTP},
		Filters:          filters,
	}
}

func registryOnly(m *meshconfig.MeshConfig) bool {
	return m.GetOutboundTrafficPolicy().GetMode() == meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY
}
