package mesh

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is a Kubernetes or Istio object and the place it was read from.
type Object struct {
	runtime.Object        // a typed object: *corev1.Service, *networkingv1.VirtualService, ...
	File           string // empty when it came from an API server
	Line           int    // 1-based line at which its document begins; 0 when unknown
}

// Options are the fixed properties of a mesh. The zero value is Istio's defaults.
type Options struct {
	RootNamespace string // where the MeshConfig and mesh-wide policy live; "istio-system"
	ClusterDomain string // DNS suffix of services; "cluster.local"
	MeshConfigMap string // name of the ConfigMap with the MeshConfig; "istio"
	TrustDomain   string // used unless the MeshConfig sets one; "cluster.local"

	DebounceAfter     time.Duration // quiet time before a change goes out; 100 ms
	DebounceMax       time.Duration // longest time that a change is held back; 10 s
	DebounceEndpoints bool          // hold back endpoints too (PILOT_ENABLE_EDS_DEBOUNCE)
}

// Store holds the mesh as it changes. Objects are applied and deleted by key; [Store.Snapshot] gives the mesh of
// this moment, [Store.Updates] the mesh each time that it changes. It is safe for concurrent use.
type Store struct {
	opts Options

	mu      sync.Mutex
	current *Snapshot
	pending pending
	subs    map[*subscriber]struct{}

	touched  bool   // something changed since the readers of Updates were told
	heldBack uint64 // counts the changes that wait for the debounce

	// What snapshots are derived from and do not show themselves.
	nodes      map[string]Locality
	podsOnNode map[string]map[string]struct{}
	slices     map[string]*slice            // by "namespace/name"
	bySvc      map[string]map[string]*slice // "namespace/service" -> its slices
	podSvcs    refs[string]                 // pod -> services with a slice that names it
	addrSvcs   refs[netip.Addr]             // address -> services with a slice that holds it
	podByAddr  map[netip.Addr]string        // address -> pod, without host network
	serviceIDs map[Key][]string             // object -> serviceIDs made of it
	problems   map[Key][]Problem
}

// pending is what has been applied since the last snapshot. A nil value is a deletion.
type pending struct {
	namespaces          map[string]*Namespace
	services            map[string]*Service
	workloads           map[string]*Workload
	virtualServices     map[string]*VirtualService
	destinationRules    map[string]*DestinationRule
	gateways            map[string]*Gateway
	peerAuthentications map[string]*PeerAuthentication
	configs             map[string]*Config
	mesh                *meshState
	problems            bool

	config    ChangeSet // what waits for the debounce
	endpoints ChangeSet // what goes at once

	staleEndpoints map[string]struct{} // serviceIDs
	staleTargets   map[string]struct{} // pods
}

func newPending() pending {
	return pending{
		namespaces:          map[string]*Namespace{},
		services:            map[string]*Service{},
		workloads:           map[string]*Workload{},
		virtualServices:     map[string]*VirtualService{},
		destinationRules:    map[string]*DestinationRule{},
		gateways:            map[string]*Gateway{},
		peerAuthentications: map[string]*PeerAuthentication{},
		configs:             map[string]*Config{},
		staleEndpoints:      map[string]struct{}{},
		staleTargets:        map[string]struct{}{},
	}
}

// NewStore returns an empty mesh.
func NewStore(opts Options) *Store {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&opts.RootNamespace, "istio-system")
	def(&opts.ClusterDomain, "cluster.local")
	def(&opts.MeshConfigMap, "istio")
	def(&opts.TrustDomain, "cluster.local")
	if opts.DebounceAfter == 0 {
		opts.DebounceAfter = 100 * time.Millisecond
	}
	if opts.DebounceMax == 0 {
		opts.DebounceMax = 10 * time.Second
	}
	s := &Store{
		opts:       opts,
		pending:    newPending(),
		subs:       map[*subscriber]struct{}{},
		nodes:      map[string]Locality{},
		podsOnNode: map[string]map[string]struct{}{},
		slices:     map[string]*slice{},
		bySvc:      map[string]map[string]*slice{},
		podSvcs:    refs[string]{},
		addrSvcs:   refs[netip.Addr]{},
		podByAddr:  map[netip.Addr]string{},
		serviceIDs: map[Key][]string{},
		problems:   map[Key][]Problem{},
	}
	s.current = s.empty()
	return s
}

// Apply adds objects or replaces those of the same kind, namespace and name; together they are one
// change. The store takes the objects over: they must not be modified afterwards. Kinds that mean
// nothing to a mesh are ignored. An object that cannot be used is named in the error and in
// [Snapshot.Problems]; the last good one stays in force, and all others are applied.
func (s *Store) Apply(objects ...Object) error { return s.Update(objects, nil) }

// Delete removes objects; together they are one change. Unknown keys are ignored.
func (s *Store) Delete(keys ...Key) { _ = s.Update(nil, keys) }

// Update removes and applies objects as one change: no snapshot shows a part of it.
func (s *Store) Update(apply []Object, remove []Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, k := range remove {
		s.remove(k)
	}
	for _, o := range apply {
		if err := s.apply(o); err != nil {
			errs = append(errs, err)
		}
	}
	s.wake()
	return errors.Join(errs...)
}

// KeyOf names an object.
func KeyOf(o runtime.Object) (Key, error) {
	m, ok := o.(metav1.Object)
	if !ok {
		return Key{}, fmt.Errorf("%T has no metadata", o)
	}
	return Key{Kind: kindOf(o), Namespace: m.GetNamespace(), Name: m.GetName()}, nil
}

// Snapshot returns the mesh with everything that has been applied so far.
func (s *Store) Snapshot() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.build(true)
}

func (s *Store) empty() *Snapshot {
	config := DefaultMeshConfig()
	config.RootNamespace, config.TrustDomain = s.opts.RootNamespace, s.opts.TrustDomain
	n := &Snapshot{clusterDomain: s.opts.ClusterDomain, mesh: &meshState{config: config}}
	n.services = newServiceIndex(n.servicesTable(), config.DefaultServiceExportTo, nil)
	n.virtualServices = newVirtualServiceIndex(nil, config.DefaultVirtualServiceExportTo, nil)
	n.destinationRules = newDestinationRuleIndex(nil, config.DefaultDestinationRuleExportTo, config.RootNamespace, nil)
	n.gateways = newGatewayIndex(nil, nil)
	n.peerAuthentications = newPeerAuthenticationIndex(nil, config.RootNamespace)
	return n
}

func (s *Snapshot) servicesTable() *table[Service] {
	if s.services == nil {
		return nil
	}
	return s.services.all
}

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
	s.buildEndpoints(prev, &n)
	s.buildTargets(prev, &n)
	n.version++
	s.current = &n
	for sub := range s.subs {
		sub.changes.merge(n.changes)
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
	if t := prev.services.all.with(p.services); t != prev.services.all || newMesh {
		n.services = newServiceIndex(t, config.DefaultServiceExportTo, prev.services)
		for id, svc := range p.services {
			p.staleEndpoints[id] = struct{}{}
			s.markTargets(n.workloads, prev.services.all.get(id))
			s.markTargets(n.workloads, svc)
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
		slices.SortFunc(n.problems, func(a, b Problem) int { return strings.Compare(a.String(), b.String()) })
	}
	clear(p.namespaces)
	clear(p.configs)
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

func (s *Store) buildEndpoints(prev, n *Snapshot) {
	if len(s.pending.staleEndpoints) == 0 {
		return
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
			next = s.endpointsFor(svc, find, old)
		}
		if next == old {
			continue
		}
		changed[id] = next
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
}

func (s *Store) endpointsFor(svc *Service, find resolver, old *serviceEndpoints) *serviceEndpoints {
	if svc.Kind != "Service" || svc.Resolution == ResolutionDNS {
		return endpointsOf(svc, nil, find, old)
	}
	set := s.bySvc[svc.Namespace+"/"+svc.Name]
	list := make([]*slice, 0, len(set))
	for _, sl := range set {
		list = append(list, sl)
	}
	slices.SortFunc(list, func(a, b *slice) int { return strings.Compare(a.key, b.key) })
	return endpointsOf(svc, list, find, old)
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

// refs counts who refers to a key.
type refs[K comparable] map[K]map[string]int

func (r refs[K]) add(k K, by string) {
	m := r[k]
	if m == nil {
		m = map[string]int{}
		r[k] = m
	}
	m[by]++
}

func (r refs[K]) drop(k K, by string) {
	m := r[k]
	if m[by]--; m[by] <= 0 {
		delete(m, by)
	}
	if len(m) == 0 {
		delete(r, k)
	}
}

// changedConfig notes a change that waits for the debounce.
func (s *Store) changedConfig(key Key) {
	s.pending.config.add(key)
	s.touched = true
	s.heldBack++
}

// changedEndpoints notes a change that goes at once.
func (s *Store) changedEndpoints(key Key) {
	s.pending.endpoints.add(key)
	s.touched = true
	if s.opts.DebounceEndpoints {
		s.heldBack++
	}
}

// latest is the newest value: the pending one, or else that of the current snapshot.
func latest[T any](pending map[string]*T, t *table[T], key string) *T {
	if v, ok := pending[key]; ok {
		return v
	}
	return t.get(key)
}

// metaOf takes over what the mesh keeps of an object's metadata.
func metaOf(o metav1.Object, kind, file string, line int) Meta {
	return Meta{
		Ref:         Ref{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), File: file, Line: line},
		UID:         string(o.GetUID()),
		Labels:      o.GetLabels(),
		Annotations: keptAnnotations(o.GetAnnotations()),
		Created:     o.GetCreationTimestamp().Time,
	}
}

// keptAnnotations leaves out kubectl's copy of the whole object.
func keptAnnotations(a map[string]string) map[string]string {
	const last = "kubectl.kubernetes.io/last-applied-configuration"
	if _, ok := a[last]; !ok {
		return a
	}
	a = maps.Clone(a)
	delete(a, last)
	return a
}
