package envoy

import (
	"slices"
	"strconv"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/weft-mesh/weft/mesh"
)

// A sharedPort is a port on which several hosts take connections.
type sharedPort struct {
	number uint16
	hosts  []*virtualHost // as their bundles have them; the catch-all is the last
	chains []sharedChain

	owners    []*virtualHost // what is left of each host; nil for nothing
	names     *domains       // nil unless proxies ask host by host
	asked     []*virtualHost // and then: what is left of each host for those; nil for nothing, and for those that come under each asked name
	resources []*Resource    // the listener and the table
}

// build makes the listener and the routes of a shared port. former, which may be nil, is the same port in the scope's previous Set.
func (p *sharedPort) build(c client, m, formerMesh *meshconfig.MeshConfig, former *sharedPort, pool *pool) {
	if slices.Contains(sidecarPorts, p.number) {
		return // the sidecar's own listeners are there
	}
	if former == nil {
		former = &sharedPort{}
	}
	if len(p.hosts) > 0 {
		if n := len(former.hosts); n > 0 && m == formerMesh {
			p.hosts = append(p.hosts, former.hosts[n-1])
		} else {
			all := catchAll(m, p.number)
			all.Resource = pool.one(all.Resource)
			p.hosts = append(p.hosts, all)
		}
		p.settle(c, former)
	}
	same := m == formerMesh && len(former.resources) > 0 && slices.EqualFunc(former.chains, p.chains, sharedChain.equal)
	if c.inline {
		same = same && slices.Equal(former.owners, p.owners)
	} else {
		same = same && slices.EqualFunc(former.hosts, p.hosts, sameService)
	}
	if same {
		p.resources = former.resources
		return
	}
	p.resources = nil
	name := strconv.Itoa(int(p.number))
	if len(p.hosts) > 0 {
		if c.inline {
			p.resources = append(p.resources, inlineTable(name, p.owners))
		} else {
			p.resources = append(p.resources, separateTable(name))
		}
	}
	p.resources = append(p.resources, p.listener(c, m, name))
	pool.intern(p.resources)
}

// sameService reports whether two hosts would appear alike in a listener.
func sameService(a, b *virtualHost) bool {
	return a == b || a.Name == b.Name && serviceOf(a) == serviceOf(b)
}

// serviceOf is the service behind a virtual host, if there is one.
func serviceOf(h *virtualHost) mesh.Ref {
	for _, c := range h.Causes {
		if c.Kind == "Service" {
			return c
		}
	}
	return mesh.Ref{}
}

// settle says who owns which domain. Nearly always that is as it was: a change of a host's routes does not change its domains.
func (p *sharedPort) settle(c client, former *sharedPort) {
	if len(former.owners) == len(p.hosts) && slices.EqualFunc(former.hosts, p.hosts, sameDomains) {
		p.owners = p.again(former.owners, former.hosts)
		if former.names != nil {
			names := *former.names
			names.hosts = p.hosts
			p.names = &names
			p.asked = p.again(former.asked, former.hosts)
		}
		return
	}
	names, owners := indexDomains(p.hosts)
	p.owners = owners
	if c.lazy {
		p.names = names
		p.asked = names.indexWildcards(owners)
	}
}

// again is what is left of hosts whose domains are those of former hosts.
func (p *sharedPort) again(left, hosts []*virtualHost) []*virtualHost {
	left = slices.Clone(left)
	for i, h := range p.hosts {
		if h != hosts[i] && left[i] != nil {
			left[i] = h.with(left[i].domains)
		}
	}
	return left
}

func sameDomains(a, b *virtualHost) bool { return a == b || slices.Equal(a.domains, b.domains) }

func (p *sharedPort) listener(c client, m *meshconfig.MeshConfig, name string) *Resource {
	l := outboundListener(m, "0.0.0.0_"+name, tcpAddress("0.0.0.0", uint32(p.number)))
	l.AdditionalAddresses = []*listener.AdditionalAddress{{Address: tcpAddress("::", uint32(p.number))}}
	l.DefaultFilterChain = catchAllChain(m)
	if len(p.hosts) > 0 {
		l.FilterChains = append(l.FilterChains, httpChain(c.outboundHTTP(m, "outbound_"+l.Name, name)))
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
	for _, h := range p.hosts { // in the order of the table
		if ref := serviceOf(h); ref != (mesh.Ref{}) {
			r.Causes = append(r.Causes, ref)
		}
	}
	return r
}
