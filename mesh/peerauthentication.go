package mesh

import (
	"math"
	"slices"

	security "istio.io/api/security/v1beta1"
)

// peerAuthenticationIndex is shared by all snapshots between which no PeerAuthentication changed.
type peerAuthenticationIndex struct {
	mesh       mtlsDecision
	namespaces map[string]*namespaceMTLS
}

type mtlsDecision struct {
	mode MTLSMode
	refs []Ref
}

type namespaceMTLS struct {
	decision  mtlsDecision
	workloads []workloadMTLS // in order of precedence
}

type workloadMTLS struct {
	selector map[string]string
	decision mtlsDecision
	ports    map[uint32]mtlsDecision
	portList []uint16 // the keys of ports, sorted
}

// newPeerAuthenticationIndex works inheritance out once: what is UNSET takes
// the mode of the next wider level, and nothing at all means PERMISSIVE. Where two policies have the
// same level, the older one counts and the other is ignored.
func newPeerAuthenticationIndex(all *table[PeerAuthentication], root string) *peerAuthenticationIndex {
	x := &peerAuthenticationIndex{namespaces: map[string]*namespaceMTLS{}}
	sorted := slices.Clone(all.values())
	slices.SortFunc(sorted, func(a, b *PeerAuthentication) int { return byPrecedence(&a.Meta, &b.Meta) })
	broad := func(p *PeerAuthentication) bool { return len(p.Spec.GetSelector().GetMatchLabels()) == 0 }
	if i := slices.IndexFunc(sorted, func(p *PeerAuthentication) bool { return p.Namespace == root && broad(p) }); i >= 0 {
		x.mesh = x.mesh.narrowed(sorted[i].Spec.Mtls, sorted[i].Ref)
	}
	namespace := func(name string) *namespaceMTLS {
		n := x.namespaces[name]
		if n == nil {
			n = &namespaceMTLS{decision: x.mesh}
			x.namespaces[name] = n
		}
		return n
	}
	seen := map[string]bool{root: true}
	for _, p := range sorted {
		if broad(p) && !seen[p.Namespace] {
			seen[p.Namespace] = true
			n := namespace(p.Namespace)
			n.decision = n.decision.narrowed(p.Spec.Mtls, p.Ref)
		}
	}
	for _, p := range sorted {
		if broad(p) {
			continue
		}
		n := namespace(p.Namespace)
		w := workloadMTLS{selector: p.Spec.Selector.MatchLabels, decision: n.decision.narrowed(p.Spec.Mtls, p.Ref)}
		for port, m := range p.Spec.PortLevelMtls {
			if w.ports == nil {
				w.ports = map[uint32]mtlsDecision{}
			}
			w.ports[port] = w.decision.narrowed(m, p.Ref)
			if port > 0 && port <= math.MaxUint16 {
				w.portList = append(w.portList, uint16(port))
			}
		}
		slices.Sort(w.portList)
		n.workloads = append(n.workloads, w)
	}
	return x
}

// narrowed is the decision after a policy of a narrower level was taken into account.
func (d mtlsDecision) narrowed(m *security.PeerAuthentication_MutualTLS, ref Ref) mtlsDecision {
	mode, ok := mtlsMode(m)
	if !ok {
		return d
	}
	return mtlsDecision{mode, []Ref{ref}}
}

func mtlsMode(m *security.PeerAuthentication_MutualTLS) (MTLSMode, bool) {
	switch m.GetMode() {
	case security.PeerAuthentication_MutualTLS_DISABLE:
		return MTLSDisable, true
	case security.PeerAuthentication_MutualTLS_PERMISSIVE:
		return MTLSPermissive, true
	case security.PeerAuthentication_MutualTLS_STRICT:
		return MTLSStrict, true
	}
	return MTLSPermissive, false
}

func (x *peerAuthenticationIndex) server(w *Workload, port uint16) (MTLSMode, []Ref) {
	n := x.namespaces[w.Namespace]
	if n == nil {
		return x.mesh.mode, x.mesh.refs
	}
	for _, p := range n.workloads {
		if SelectorMatches(p.selector, w.Labels) {
			if d, ok := p.ports[uint32(port)]; ok {
				return d.mode, d.refs
			}
			return p.decision.mode, p.decision.refs
		}
	}
	return n.decision.mode, n.decision.refs
}

// ports lists the ports that portLevelMtls of the policy in force names.
func (x *peerAuthenticationIndex) ports(w *Workload) []uint16 {
	n := x.namespaces[w.Namespace]
	if n == nil {
		return nil
	}
	for _, p := range n.workloads {
		if SelectorMatches(p.selector, w.Labels) {
			return p.portList
		}
	}
	return nil
}
