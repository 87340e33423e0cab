package mesh

import (
	"net/netip"
	"slices"
	"strings"
)

// build makes the next snapshot of what is pending: all of it, or only what goes at once. It returns
// the current one when nothing differs.
func (s *Store) build(all bool) *Snapshot {
	p := &s.pending
	if p.endpoints.Len() == 0 && (!all || p.config.Len() == 0) {
		return s.current
	}
	prev := s.current
	n := *prev
	n.changes = ChangeSet{}

	n.workloads = prev.workloads.with(p.workloads)
	clear(p.workloads)
	n.changes.merge(p.endpoints)
	p.endpoints = ChangeSet{}
	if all {
		s.buildConfig(prev, &n)
	}
	fewer := s.buildEndpoints(prev, &n)
	s.buildTargets(prev, &n)
	n.version++
	s.current = &n
	for sub := range s.subs {
		sub.changes.merge(n.changes)
	}
	if fewer && !all && p.config.Len() > 0 {
		// Who takes the route to a version away and then the version must not see the second first.
		return s.build(true)
	}
	return s.current
}

// buildConfig brings in what waits for the debounce.
func (s *Store) buildConfig(prev, n *Snapshot) {
	p := &s.pending
	if p.mesh != nil {
		n.mesh = p.mesh
		p.mesh = nil
	}
	config, newMesh := n.mesh.config, n.mesh != prev.mesh
	n.namespaces = prev.namespaces.with(p.namespaces)
	n.configs = prev.configs.with(p.configs)
	n.credentials = prev.credentials.with(p.credentials)
	if t := prev.services.all.with(p.services); t != prev.services.all || newMesh {
		n.services = newServiceIndex(t, config.DefaultServiceExportTo, prev.services)
		for id, svc := range p.services {
			p.staleEndpoints[id] = struct{}{}
			s.markTargets(n.workloads, prev.services.all.get(id))
			s.markTargets(n.workloads, svc)
			s.markMembers(prev.endpoints.get(id)) // its targets, when it has or had no selector
		}
	}
	n.virtualServiceTable = prev.virtualServiceTable.with(p.virtualServices)
	if n.virtualServiceTable != prev.virtualServiceTable || newMesh {
		n.virtualServices = newVirtualServiceIndex(n.virtualServiceTable, config.DefaultVirtualServiceExportTo, prev.virtualServices)
	}
	n.destinationRuleTable = prev.destinationRuleTable.with(p.destinationRules)
	if n.destinationRuleTable != prev.destinationRuleTable || newMesh {
		n.destinationRules = newDestinationRuleIndex(n.destinationRuleTable, config.DefaultDestinationRuleExportTo, config.RootNamespace, prev.destinationRules)
	}
	n.gatewayTable = prev.gatewayTable.with(p.gateways)
	if n.gatewayTable != prev.gatewayTable {
		n.gateways = newGatewayIndex(n.gatewayTable, prev.gateways)
	}
	n.peerAuthenticationTable = prev.peerAuthenticationTable.with(p.peerAuthentications)
	if n.peerAuthenticationTable != prev.peerAuthenticationTable || newMesh {
		n.peerAuthentications = newPeerAuthenticationIndex(n.peerAuthenticationTable, config.RootNamespace)
	}
	if p.problems {
		p.problems = false
		n.problems = nil
		for _, list := range s.problems {
			n.problems = append(n.problems, list...)
		}
		for _, list := range s.complaints {
			n.problems = append(n.problems, list...)
		}
		slices.SortFunc(n.problems, func(a, b Problem) int { return strings.Compare(a.String(), b.String()) })
	}
	clear(p.namespaces)
	clear(p.configs)
	clear(p.credentials)
	clear(p.services)
	clear(p.virtualServices)
	clear(p.destinationRules)
	clear(p.gateways)
	clear(p.peerAuthentications)
	n.changes.merge(p.config)
	p.config = ChangeSet{}
}

// markTargets notes that the workloads selected by a service may have other targets.
func (s *Store) markTargets(workloads *table[Workload], svc *Service) {
	if svc == nil || len(svc.Selector) == 0 {
		return
	}
	for key, w := range workloads.prefix(svc.Namespace + "/") {
		if SelectorMatches(svc.Selector, w.Labels) {
			s.pending.staleTargets[key] = struct{}{}
		}
	}
}

// markMoved notes the services that may have endpoints on nodes of another locality. It looks at all slices, once for
// all nodes that moved: nodes hardly ever do, except when the mesh is read for the first time.
func (s *Store) markMoved() {
	moved := s.pending.movedNodes
	if len(moved) == 0 {
		return
	}
	for _, sl := range s.slices {
		if slices.ContainsFunc(sl.members, func(m sliceMember) bool { _, ok := moved[m.node]; return ok }) {
			s.markService(sl.service)
		}
	}
	clear(moved)
}

func (s *Store) buildEndpoints(prev, n *Snapshot) (fewer bool) {
	s.markMoved()
	if len(s.pending.staleEndpoints) == 0 {
		return false
	}
	find := resolver{
		workload: func(pod string, addr netip.Addr) *Workload {
			if pod != "" {
				if w := n.workloads.get(pod); w != nil && (len(w.Addresses) == 0 || slices.Contains(w.Addresses, addr)) {
					return w
				}
				return nil
			}
			if pod = s.podByAddr[addr]; pod != "" {
				return n.workloads.get(pod)
			}
			return nil
		},
		node: func(name string) Locality { return s.nodes[name] },
	}
	changed := map[string]*serviceEndpoints{}
	for id := range s.pending.staleEndpoints {
		svc, old := n.services.all.get(id), prev.endpoints.get(id)
		var next *serviceEndpoints
		if svc != nil {
			next = s.endpointsFor(svc, n, find, old)
		}
		if next == old {
			continue
		}
		changed[id] = next
		fewer = fewer || next.ready() < old.ready()
		host, _, _ := strings.Cut(id, "\x00")
		if svc != nil {
			n.changes.add(Key{Kind: KindEndpoints, Namespace: svc.Namespace, Name: host})
		}
		if svc == nil || len(svc.Selector) == 0 { // targets of such services come from endpoints
			s.markMembers(old)
			s.markMembers(next)
		}
	}
	n.endpoints = prev.endpoints.with(changed)
	clear(s.pending.staleEndpoints)
	return fewer
}

func (s *Store) endpointsFor(svc *Service, n *Snapshot, find resolver, old *serviceEndpoints) *serviceEndpoints {
	if svc.entry != nil {
		selected := selectedWorkloads(svc, n.workloads)
		return endpointsOf(svc, old, func(p Port) []Endpoint { return entryEndpoints(svc, p, selected) })
	}
	if svc.Resolution == ResolutionDNS {
		return endpointsOf(svc, old, func(Port) []Endpoint { return nil })
	}
	set := s.bySvc[svc.Namespace+"/"+svc.Name]
	list := make([]*slice, 0, len(set))
	for _, sl := range set {
		list = append(list, sl)
	}
	slices.SortFunc(list, func(a, b *slice) int { return strings.Compare(a.key, b.key) })
	return endpointsOf(svc, old, func(p Port) []Endpoint { return sliceEndpoints(svc, p, list, find) })
}

func (s *Store) markMembers(e *serviceEndpoints) {
	if e == nil {
		return
	}
	for _, p := range e.ports {
		for _, ep := range p.list {
			if ep.Workload != nil {
				s.pending.staleTargets[ep.Workload.Namespace+"/"+ep.Workload.Name] = struct{}{}
			}
		}
	}
}

func (s *Store) buildTargets(prev, n *Snapshot) {
	if len(s.pending.staleTargets) == 0 {
		return
	}
	changed := map[string]*workloadTargets{}
	for key := range s.pending.staleTargets {
		old, w := prev.targets.get(key), n.workloads.get(key)
		var next *workloadTargets
		if w != nil {
			next = targetsOf(w, n.services, s.byHand(n, w), old)
		}
		if next != old {
			changed[key] = next
		}
	}
	n.targets = prev.targets.with(changed)
	clear(s.pending.staleTargets)
}

// byHand yields the services without selector that have the workload among their endpoints.
func (s *Store) byHand(n *Snapshot, w *Workload) func(func(*Service, Port, uint16)) {
	named := map[string]struct{}{}
	for svc := range s.podSvcs[w.Namespace+"/"+w.Name] {
		named[svc] = struct{}{}
	}
	for _, a := range w.Addresses {
		for svc := range s.addrSvcs[a] {
			named[svc] = struct{}{}
		}
	}
	if len(named) == 0 {
		return nil
	}
	return func(yield func(*Service, Port, uint16)) {
		for key := range named {
			ns, name := splitKey(key)
			id := serviceID(name+"."+ns+".svc."+s.opts.ClusterDomain, ns, "Service", name)
			svc := n.services.all.get(id)
			if svc == nil || len(svc.Selector) > 0 {
				continue
			}
			for _, p := range svc.Ports {
				for _, e := range n.endpoints.get(id).port(p.Number) {
					if e.Workload == w {
						yield(svc, p, e.Port)
					}
				}
			}
		}
	}
}
