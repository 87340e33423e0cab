package mesh

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"sync"
	"time"

	meshconfig "istio.io/api/mesh/v1alpha1"
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

// FromEnvironment takes the debounce settings from Istio's variables: PILOT_DEBOUNCE_AFTER and PILOT_DEBOUNCE_MAX,
// durations such as "100ms" (0 turns the wait off), and PILOT_ENABLE_EDS_DEBOUNCE, a boolean. getenv is usually os.Getenv.
func (o *Options) FromEnvironment(getenv func(string) string) error {
	var errs []error
	duration := func(into *time.Duration, name string) {
		text := getenv(name)
		if text == "" {
			return
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			errs = append(errs, fmt.Errorf("%s=%q is not a duration such as 100ms", name, text))
			return
		}
		*into = max(d, 1) // 0 would mean the default
	}
	duration(&o.DebounceAfter, "PILOT_DEBOUNCE_AFTER")
	duration(&o.DebounceMax, "PILOT_DEBOUNCE_MAX")
	if text := getenv("PILOT_ENABLE_EDS_DEBOUNCE"); text != "" {
		b, err := strconv.ParseBool(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("PILOT_ENABLE_EDS_DEBOUNCE=%q is neither true nor false", text))
		}
		o.DebounceEndpoints = b
	}
	return errors.Join(errs...)
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

	selectingEntries refs[string] // namespace -> serviceIDs of service entries that select workloads

	problems   map[Key][]Problem
	complaints map[Key][]Problem // of who reads objects; see Complain
	demand     demand
	hosts      map[string]Node // by name
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
	credentials         map[string]*Credential
	mesh                *meshState
	problems            bool

	config    ChangeSet // what waits for the debounce
	endpoints ChangeSet // what goes at once

	staleEndpoints map[string]struct{} // serviceIDs
	staleTargets   map[string]struct{} // pods
	movedNodes     map[string]struct{} // nodes of another locality
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
		credentials:         map[string]*Credential{},
		staleEndpoints:      map[string]struct{}{},
		staleTargets:        map[string]struct{}{},
		movedNodes:          map[string]struct{}{},
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

		selectingEntries: refs[string]{},
		problems:         map[Key][]Problem{},
		demand:           newDemand(),
		complaints:       map[Key][]Problem{},
		hosts:            map[string]Node{},
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

// Current returns the newest snapshot that was made. Unlike Snapshot it makes none, so that asking does not
// cut the debounce of Updates short.
func (s *Store) Current() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// Namespace returns a namespace as it was last applied, also when no snapshot shows it yet: who labels a
// namespace and creates a pod expects the label to count. Nil when it is unknown.
func (s *Store) Namespace(name string) *Namespace {
	s.mu.Lock()
	defer s.mu.Unlock()
	return latest(s.pending.namespaces, s.current.namespaces, name)
}

// Has reports whether a Service, Gateway or VirtualService was applied, also when no snapshot shows it yet.
func (s *Store) Has(k Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := k.Namespace + "/" + k.Name
	switch k.Kind {
	case "Service":
		return len(s.serviceIDs[k]) > 0
	case "Gateway":
		return latest(s.pending.gateways, s.current.gatewayTable, name) != nil
	case "VirtualService":
		return latest(s.pending.virtualServices, s.current.virtualServiceTable, name) != nil
	}
	return false
}

// Mesh returns the MeshConfig as it was last applied, also when no snapshot shows it yet.
func (s *Store) Mesh() *meshconfig.MeshConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending.mesh != nil {
		return s.pending.mesh.config
	}
	return s.current.mesh.config
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
