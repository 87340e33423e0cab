package envoy

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

// A gatewayServer is one server of a Gateway on the port of the gateway's pods that it leads to.
type gatewayServer struct {
	*networking.Server
	gateway *mesh.Gateway
	index   int    // in spec.servers
	port    uint16 // on the pod
	kind    serverKind
}

// serverKind is what a listener does with a server's connections. Servers of one kind share a port.
type serverKind string

const (
	servesHTTP serverKind = "HTTP" // requests in plaintext
	servesTLS  serverKind = "TLS"  // whatever is in it; chosen by server name
	servesTCP  serverKind = "TCP"
)

func (s *gatewayServer) key() listenerKey { return listenerKey{s.GetBind(), s.port} }

// name is the Gateway's, as VirtualServices refer to it.
func (s *gatewayServer) name() string { return s.gateway.Namespace + "/" + s.gateway.Name }

func (s *gatewayServer) field(rest string) string {
	return fmt.Sprintf("spec.servers[%d].%s", s.index, rest)
}

// number is the port that clients dial.
func (s *gatewayServer) number() uint16 { return uint16(s.GetPort().GetNumber()) }

// requests reports whether the gateway reads HTTP requests, in plaintext or after it ended TLS.
func (s *gatewayServer) requests() bool {
	p := mesh.ParseProtocol(s.GetPort().GetProtocol())
	return p.IsHTTP() || p == mesh.ProtocolHTTPS && !s.passthrough()
}

// passthrough reports whether TLS is routed by its server name without being ended.
func (s *gatewayServer) passthrough() bool {
	m := s.GetTls().GetMode()
	return m == networking.ServerTLSSettings_PASSTHROUGH || m == networking.ServerTLSSettings_AUTO_PASSTHROUGH
}

// serves reports which of a VirtualService's hosts the server lets through, each in the more specific of the two forms.
// A server's host may be preceded by the namespace that the VirtualService must be in: "ns/host", "./host" for the Gateway's own, "*/host" for any.
// (Istio API: Server.hosts.)
func (s *gatewayServer) serves(namespace string, hosts []string) []string {
	var out []string
	for _, pattern := range s.GetHosts() {
		pattern = strings.ToLower(pattern) // as Envoy compares them
		if ns, host, scoped := strings.Cut(pattern, "/"); scoped {
			if ns == "." {
				ns = s.gateway.Namespace
			}
			if ns != "*" && ns != namespace {
				continue
			}
			pattern = host
		}
		for _, h := range hosts {
			h = strings.ToLower(h)
			switch {
			case h == pattern || mesh.HostMatches(pattern, h):
				out = append(out, h)
			case mesh.HostMatches(h, pattern):
				out = append(out, pattern)
			}
		}
	}
	slices.SortFunc(out, mesh.CompareHosts)
	return slices.Compact(out)
}

// hostNames are the server's hosts without namespaces.
func (s *gatewayServer) hostNames() []string {
	var out []string
	for _, h := range s.GetHosts() {
		if _, rest, scoped := strings.Cut(h, "/"); scoped {
			h = rest
		}
		out = append(out, strings.ToLower(h))
	}
	slices.SortFunc(out, mesh.CompareHosts)
	return slices.Compact(out)
}

// A listenerKey is an address on which a gateway listens.
type listenerKey struct {
	bind string // empty: all addresses of the pod
	port uint16
}

// gatewayServers lists the servers of all Gateways that select the workload, those that share a listener together, in the order of
// precedence of the Gateways. What does not go together with an older server on the same port is left out.
func (v *view) gatewayServers(w *mesh.Workload) map[listenerKey][]*gatewayServer {
	gateways := look(v, func(s *mesh.Snapshot) []*mesh.Gateway { return s.Gateways(w) }, slices.Equal)
	targets := look(v, func(s *mesh.Snapshot) []mesh.Target { return s.Targets(w) }, sameSlice)
	out := map[listenerKey][]*gatewayServer{}
	for _, g := range gateways {
		for i, spec := range g.Spec.GetServers() {
			for _, port := range podPorts(targets, uint16(spec.GetPort().GetNumber())) {
				s := &gatewayServer{Server: spec, gateway: g, index: i, port: port}
				if !v.admit(s) {
					continue
				}
				others := out[s.key()]
				if len(others) > 0 && (others[0].kind != s.kind || s.kind == servesTCP) {
					v.problem(g.Ref, s.field("port"), fmt.Sprintf(
						"port %d of the gateway's pods serves %s for the older %s and cannot serve %s too; use another port number",
						port, others[0].kind, others[0].gateway.Ref, s.kind))
					continue
				}
				out[s.key()] = append(others, s)
			}
		}
	}
	return out
}

// podPorts translates a server's port, which is one of the Service in front of the gateway, into ports on which the pods listen.
// Without such a Service it is the pod's own. (Istio: "Gateway ports are service ports".)
func podPorts(targets []mesh.Target, number uint16) []uint16 {
	var out []uint16
	for _, t := range targets {
		if slices.ContainsFunc(t.ServicePorts, func(p mesh.Port) bool { return p.Number == number }) {
			out = append(out, t.Port)
		}
	}
	if len(out) == 0 {
		out = []uint16{number}
	}
	return out
}

// admit sets the kind of a server, or says why it cannot be served.
func (v *view) admit(s *gatewayServer) bool {
	refuse := func(field, message string) bool {
		v.problem(s.gateway.Ref, s.field(field), message)
		return false
	}
	if n := s.GetPort().GetNumber(); n == 0 || n > math.MaxUint16 {
		return refuse("port.number", fmt.Sprintf("%d is no port; use 1 to 65535", n))
	}
	if b := s.GetBind(); b != "" {
		if _, err := netip.ParseAddr(b); err != nil {
			return refuse("bind", fmt.Sprintf("%q is no IP address of the pod; leave it out to listen on all", b))
		}
	}
	if slices.Contains(sidecarPorts, s.port) {
		return refuse("port.number", fmt.Sprintf("port %d belongs to the proxy itself; use another", s.port))
	}
	switch p := mesh.ParseProtocol(s.GetPort().GetProtocol()); {
	case p.IsHTTP():
		s.kind = servesHTTP
	case p == mesh.ProtocolHTTPS, p == mesh.ProtocolTLS:
		s.kind = servesTLS
		if s.GetTls() == nil {
			return refuse("tls", "a server of protocol "+s.GetPort().GetProtocol()+" needs tls.mode")
		}
		return v.admitTLS(s, refuse)
	case p == mesh.ProtocolTCP:
		s.kind = servesTCP
	default:
		return refuse("port.protocol", fmt.Sprintf("%q cannot be served: use HTTP, HTTP2, GRPC, HTTPS, TLS or TCP", s.GetPort().GetProtocol()))
	}
	return true
}

// gatewayParts is what a gateway's listeners and routes need, and what they are.
type gatewayParts struct {
	reads     []read
	problems  []Problem
	resources []*Resource
	services  []*mesh.Service // that routes lead to, by host
}

// gatewaySet is all that a gateway needs: listeners and routes of the Gateways that select it, and the clusters to which those routes lead. All
// replicas of a gateway share it.
func (w *World) gatewaySet(p Proxy) *Set {
	workload := p.workload()
	c := client{namespace: workload.Namespace, router: true}
	f := familiesOf(p.addresses())
	name := workloadScopeName("gateway", workload, inboundContext{families: f})
	if own := workload.Annotations[proxyConfigAnnotation]; own != "" {
		name += fmt.Sprintf("/%08x", uint32(xxhash.Sum64String(own)))
	}
	build := func(name string) func(v *view, old *scope) (*Set, any) {
		return func(v *view, old *scope) (*Set, any) {
			parts, _ := old.parts.(*gatewayParts)
			if parts == nil || !v.holds(parts.reads) {
				own := v.fork()
				parts = buildGateway(own, workload, f)
				parts.reads, parts.problems = own.reads, own.problems
			}
			v.problems = append(v.problems, parts.problems...)
			resources := slices.Clone(parts.resources)
			for _, svc := range parts.services {
				b := w.bundle(v, svc)
				v.uses |= b.uses
				v.problems = append(v.problems, b.problems...)
				resources = append(resources, b.resources...)
			}
			return newSet(name, w.snap.Version(), old.set, resources), parts
		}
	}
	s := w.scope(name, c, build(name))
	if s.uses&usesLocality == 0 || workload.Locality == (mesh.Locality{}) {
		return s.set
	}
	c.locality = workload.Locality
	name = scopeName(name, client{locality: c.locality})
	return w.scope(name, c, build(name)).set
}

// buildGateway makes the listeners and routes.
func buildGateway(v *view, w *mesh.Workload, f families) *gatewayParts {
	b := &gatewayBuilder{view: v, families: f, topology: v.topology(w), used: map[string]*mesh.Service{}}
	servers := v.gatewayServers(w)
	for _, key := range sortedKeys(servers) {
		b.listen(key, servers[key])
	}
	b.add(blackHole(v.mesh()))
	parts := &gatewayParts{resources: b.resources}
	for _, svc := range b.used {
		parts.services = append(parts.services, svc)
	}
	slices.SortFunc(parts.services, func(a, b *mesh.Service) int { return strings.Compare(a.Host, b.Host) })
	return parts
}

func sortedKeys(m map[listenerKey][]*gatewayServer) []listenerKey {
	var keys []listenerKey
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b listenerKey) int {
		if a.port != b.port {
			return int(a.port) - int(b.port)
		}
		return strings.Compare(a.bind, b.bind)
	})
	return keys
}

// A gatewayBuilder collects the resources of one gateway.
type gatewayBuilder struct {
	*view
	families  families
	topology  *meshconfig.Topology // nil: nothing in front
	resources []*Resource
	used      map[string]*mesh.Service // by host
}

func (b *gatewayBuilder) add(r *Resource) { b.resources = append(b.resources, r) }

// site is where a VirtualService is used behind a server.
func (b *gatewayBuilder) site(s *gatewayServer, secure bool) routeSite {
	return routeSite{
		gateway: s.name(),
		port:    s.number(),
		secure:  secure,
		used:    func(svc *mesh.Service) { b.used[svc.Host] = svc },
	}
}

// virtualServices are those bound to the server's Gateway, in order of precedence.
func (b *gatewayBuilder) virtualServices(s *gatewayServer) []*mesh.VirtualService {
	name := s.name()
	return look(b.view, func(snap *mesh.Snapshot) []*mesh.VirtualService {
		return snap.VirtualServices(b.client.namespace, name)
	}, slices.Equal)
}

// listenerName is Istio's: "0.0.0.0_8080".
func (k listenerKey) listenerName() string {
	bind := k.bind
	if bind == "" {
		bind = "0.0.0.0"
	}
	return bind + "_" + strconv.Itoa(int(k.port))
}
