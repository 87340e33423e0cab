package envoy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	originaldst "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	originalsrc "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weft-mesh/weft/mesh"
)

// Ports of the sidecar itself (Istio's numbers; the last two are ours).
const (
	portAdmin        = 15000
	portOutbound     = 15001
	portInbound      = 15006
	portMetrics      = 15020
	portHealth       = 15021
	portStats        = 15090
	portProof        = 15098 // answered only when it comes back from the pod itself, see proof.go
	portKubeletProbe = 15099 // nobody listens here: only the inbound redirect makes it answer
)

// Names that Istio's users know.
const (
	virtualInbound     = "virtualInbound"
	passthroughInbound = "InboundPassthroughCluster"
)

// tproxyMark tells the TPROXY rules which packets come from the sidecar with a client's address (Istio: 1337).
const tproxyMark = 1337

// sidecarPorts are never captured, or have chains of their own; a Service that targets one gets no further chain.
var sidecarPorts = []uint16{portAdmin, portOutbound, portInbound, portMetrics, portHealth, portStats, portProof, portKubeletProbe}

// An inboundPort is what arrives on one port of a workload. Port 0 stands for all ports that no Service sends to.
type inboundPort struct {
	number   uint16
	protocol mesh.Protocol
	mode     mesh.MTLSMode

	// Of the oldest service that sends here; none when no service does.
	service     *mesh.Service
	servicePort uint16
	rule        *mesh.DestinationRule // for its limits; nil when none applies

	policies []mesh.Ref // that decide on mode
	services []mesh.Ref // that send here
}

// inboundPorts lists the ports of a workload that have chains of their own, then the catch-all. They are those that a Service
// targets, and those that a PeerAuthentication names in portLevelMtls.
func inboundPorts(s *mesh.Snapshot, w *mesh.Workload) []inboundPort {
	var ports []inboundPort
	for _, t := range s.Targets(w) {
		if slices.Contains(sidecarPorts, t.Port) {
			continue
		}
		p := inboundPort{number: t.Port, protocol: t.Protocol}
		p.mode, p.policies = s.ServerMTLS(w, t.Port)
		for i, svc := range t.Services {
			p.services = append(p.services, svc.Ref)
			if p.service == nil || svc.Created.Before(p.service.Created) {
				p.service, p.servicePort = svc, t.ServicePorts[i].Number
			}
		}
		if p.service != nil {
			p.rule = s.DestinationRule(w.Namespace, p.service)
		}
		ports = append(ports, p)
	}
	for _, number := range s.MTLSPorts(w) {
		known := slices.ContainsFunc(ports, func(p inboundPort) bool { return p.number == number })
		if known || slices.Contains(sidecarPorts, number) {
			continue
		}
		p := inboundPort{number: number}
		p.mode, p.policies = s.ServerMTLS(w, number)
		ports = append(ports, p)
	}
	slices.SortFunc(ports, func(a, b inboundPort) int { return int(a.number) - int(b.number) })

	rest := inboundPort{}
	rest.mode, rest.policies = s.ServerMTLS(w, 0)
	return append(ports, rest)
}

// reserved tells the owners of services that target a port of the sidecar. The ports that answer without redirection may well
// have a Service, for scraping.
func (v *view) reserved(w *mesh.Workload, t mesh.Target) {
	if !slices.Contains(sidecarPorts, t.Port) || t.Port >= portMetrics && t.Port <= portStats {
		return
	}
	for i, svc := range t.Services {
		v.problem(svc.Ref, fmt.Sprintf("spec.ports[port=%d].targetPort", t.ServicePorts[i].Number),
			fmt.Sprintf("port %d belongs to the sidecar of %s/%s and never reaches the app: let the app listen elsewhere",
				t.Port, w.Namespace, w.Name))
	}
}

// cluster is the name of the cluster that leads to the app.
func (p inboundPort) cluster() string {
	if p.service == nil {
		return passthroughInbound
	}
	return "inbound|" + strconv.Itoa(int(p.number)) + "||"
}

// chainName is the one that Istio's users know from `proxy-config listener`.
func (p inboundPort) chainName(http bool) string {
	switch {
	case p.number != 0:
		return "0.0.0.0_" + strconv.Itoa(int(p.number))
	case http:
		return "virtualInbound-catchall-http"
	default:
		return virtualInbound
	}
}

// inboundListener is where every connection to the pod arrives, once redirected: the port that it was meant for is only
// known by the original_dst filter, and chooses the filter chain. There is no default filter chain: a
// connection that fits nowhere, such as plaintext to a STRICT port, must be closed, not passed through.
func (c inboundContext) inboundListener(ports []inboundPort) *listener.Listener {
	chains := []*listener.FilterChain{
		blackholeChain(portInbound),
		blackholeChain(portOutbound),
		kubeletProbeChain(c.families),
		proofChain(),
	}
	var tlsPorts, httpPorts inspected
	patient := true
	sniffed := false // plaintext is taken somewhere
	for _, p := range ports {
		for _, a := range arrivals(p.mode, p.protocol) {
			chains = append(chains, c.chain(p, a))
			// A chain that takes bytes without mesh TLS may lead to a server that speaks first.
			patient = patient && (a.mtls || a.http)
		}
		tlsPorts.add(p.number, needsTLSInspector(p.mode))
		httpPorts.add(p.number, needsHTTPInspector(p.mode, p.protocol))
		sniffed = sniffed || p.mode != mesh.MTLSStrict
	}
	for _, number := range []uint16{portOutbound, portInbound, portProof, portKubeletProbe} {
		tlsPorts.add(number, false)
		httpPorts.add(number, false)
	}

	l := &listener.Listener{
		Name:             virtualInbound,
		TrafficDirection: core.TrafficDirection_INBOUND,
		Address:          anyAddress(portInbound, c.families),
		FilterChains:     chains,
		AccessLog:        listenerAccessLogs(c.mesh),
		ListenerFilters: []*listener.ListenerFilter{
			listenerFilter("envoy.filters.listener.original_dst", &originaldst.OriginalDst{}, nil),
		},
	}
	if tlsPorts.any() {
		f := inspectTLS()
		f.FilterDisabled = tlsPorts.disabled()
		l.ListenerFilters = append(l.ListenerFilters, f)
	}
	if sniffed {
		f := inspectHTTP()
		f.FilterDisabled = httpPorts.disabled()
		l.ListenerFilters = append(l.ListenerFilters, f)
	}
	if c.transparent {
		l.Transparent = yes()
		l.ListenerFilters = append(l.ListenerFilters, listenerFilter("envoy.filters.listener.original_src",
			&originalsrc.OriginalSrc{Mark: tproxyMark}, nil))
	}
	if !patient {
		l.ListenerFiltersTimeout = durationpb.New(sniffPatience(c.mesh))
		l.ContinueOnListenerFiltersTimeout = true
	}
	return l
}

// inspected collects the ports on which a listener filter looks at the first bytes of a connection, and those on
// which it must not: there it would only make servers that speak first wait.
type inspected struct {
	on, off []uint16
	rest    bool // ports in neither list
}

func (i *inspected) add(port uint16, needed bool) {
	switch {
	case port == 0:
		i.rest = needed
	case needed:
		i.on = append(i.on, port)
	default:
		i.off = append(i.off, port)
	}
}

func (i *inspected) any() bool { return i.rest || len(i.on) > 0 }

// disabled matches the connections that the filter leaves alone; nil when there are none.
func (i *inspected) disabled() *listener.ListenerFilterChainMatchPredicate {
	if i.rest {
		return destinationPorts(i.off)
	}
	return &listener.ListenerFilterChainMatchPredicate{
		Rule: &listener.ListenerFilterChainMatchPredicate_NotMatch{NotMatch: destinationPorts(i.on)},
	}
}

// anyAddress is the wildcard address of the pod's IP families. `::` takes IPv4 too: redirected connections of the
// pod to itself have their destination rewritten to a loopback address of their own family.
func anyAddress(port uint32, f families) *core.Address {
	if !f.v6 {
		return tcpAddress("0.0.0.0", port) // works where the kernel has no IPv6 at all
	}
	return dualStackAny(port)
}

// families are the IP versions that a pod has addresses of.
type families struct{ v4, v6 bool }

func familiesOf(addresses []netip.Addr) families {
	var f families
	for _, a := range addresses {
		if a.Unmap().Is4() {
			f.v4 = true
		} else if a.IsValid() {
			f.v6 = true
		}
	}
	return f
}
