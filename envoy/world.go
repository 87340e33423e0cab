package envoy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/weft-mesh/weft/mesh"
)

// Kind is what a proxy does.
type Kind string

const (
	Sidecar Kind = "sidecar"
	Router  Kind = "router" // a gateway
)

// Proxy is one connected Envoy. Namespace, Pod and ServiceAccount come from its verified
// token, Workload from the snapshot; Addresses is what the proxy says of itself and is used for
// nothing but the check that it makes of its own redirection.
type Proxy struct {
	Kind           Kind
	Namespace      string
	Pod            string
	ServiceAccount string
	Workload       *mesh.Workload
	Addresses      []netip.Addr
	Demand         *Demand // nil for eager: everything that is visible
	Inline         bool    // on a state-of-the-world stream: route tables hold their virtual hosts (VHDS exists in delta only); always eager

	own *own // see Identified
}

// World is the configuration of every class of proxies for one Snapshot. Scopes are
// built when a proxy first asks and kept while the snapshot lives; what did not change is
// taken over from the previous World.
type World struct {
	snap       *mesh.Snapshot
	generation uint64
	pool       *pool // bundles, shared by successive Worlds

	mu      sync.Mutex
	indexes map[string]*routeIndex // by client namespace
	scopes  map[string]*scope
	asked   map[string]*asked      // by scope
	old     map[string]former      // of the previous World
	oldIdx  map[string]*routeIndex // of the previous World
}

// A scope is one Set in the making: the first proxy that needs it builds it, others wait.
type scope struct {
	once     sync.Once
	built    chan struct{} // closed when the rest is there
	set      *Set
	reads    []read
	uses     uses
	problems []Problem
	parts    any // what the builder wants to find again in the next World
}

// A former scope is of a World before this one.
type former struct {
	*scope
	idle int // for how many Worlds nobody asked for it
}

// keepIdle is how many snapshots a scope survives that no proxy asks for: one that reconnects soon gets what it
// already has.
const keepIdle = 100

// NewWorld derives a World from a snapshot. prev may be nil. It is cheap: work is done in Sets.
func NewWorld(s *mesh.Snapshot, prev *World) *World {
	w := &World{
		snap:    s,
		indexes: map[string]*routeIndex{},
		scopes:  map[string]*scope{},
		asked:   map[string]*asked{},
	}
	if prev == nil {
		w.pool = newPool()
		return w
	}
	w.generation = prev.generation + 1
	w.pool = prev.pool
	w.pool.sweep(w.generation)
	prev.mu.Lock()
	defer prev.mu.Unlock()
	w.oldIdx = maps.Clone(prev.indexes) // streams that have not heard of w may still ask prev
	w.old = make(map[string]former, len(prev.scopes))
	for name, s := range prev.old {
		if prev.scopes[name] == nil && s.idle < keepIdle {
			w.old[name] = former{s.scope, s.idle + 1}
		}
	}
	for name, a := range prev.asked {
		if a = a.next(); a != nil {
			w.asked[name] = a
		}
	}
	for name, s := range prev.scopes {
		w.old[name] = former{s, 0} // perhaps still being built; who needs it waits
	}
	return w
}

// Sets returns what the proxy must have: the scopes it belongs to (outbound, workload,
// its own), disjoint by resource name. Safe for concurrent use. It never fails: an object that cannot be
// translated is left out, and listed in Problems.
func (w *World) Sets(p Proxy) []*Set {
	if p.Kind == Router {
		return []*Set{w.gatewaySet(p)}
	}
	sets := w.outboundSets(p)
	if s := w.workloadSet(p); s != nil {
		sets = append(sets, s)
	}
	if s := w.proofSet(p); s != nil {
		sets = append(sets, s)
	}
	return sets
}

// Problem is a part of the user's configuration that could not be translated.
type Problem struct {
	Ref     mesh.Ref
	Field   string // "spec.http[2].route[0].destination.subset"
	Message string // what is wrong and what to do
}

// Problems lists what was found while building the scopes so far, sorted.
func (w *World) Problems() []Problem {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Problem
	for _, s := range w.scopes {
		all = append(all, s.problems...)
	}
	slices.SortFunc(all, func(a, b Problem) int {
		if c := compareRefs(a.Ref, b.Ref); c != 0 {
			return c
		}
		if c := strings.Compare(a.Field, b.Field); c != 0 {
			return c
		}
		return strings.Compare(a.Message, b.Message)
	})
	return slices.Compact(all)
}

// scope returns the Set called name, building it at most once per World. When everything that it was built from in the previous
// World reads the same, it is the previous Set. build gets the previous Set, or nil, for newSet.
func (w *World) scope(name string, c client, build func(v *view, old *scope) (*Set, any)) *scope {
	w.mu.Lock()
	s := w.scopes[name]
	if s == nil {
		s = &scope{built: make(chan struct{})}
		w.scopes[name] = s
	}
	old := w.old[name].scope
	w.mu.Unlock()

	s.once.Do(func() {
		defer close(s.built)
		if old != nil {
			<-old.built
		}
		v := w.view(c)
		if old != nil && len(old.reads) > 0 && v.holds(old.reads) {
			s.set, s.reads, s.uses, s.parts = old.set, old.reads, old.uses, old.parts
			w.found(s, old.problems)
			return
		}
		if old == nil {
			old = &scope{}
		}
		set, parts := build(v, old)
		s.set, s.parts, s.reads, s.uses = set, parts, v.reads, v.uses
		w.found(s, v.problems)
	})
	return s
}

func (w *World) found(s *scope, problems []Problem) {
	w.mu.Lock()
	s.problems = problems
	w.mu.Unlock()
}

// view is the snapshot as the clients of one class see it.
func (w *World) view(c client) *view {
	return &view{snap: w.snap, client: c, index: w.routeIndex(c.namespace)}
}

func (w *World) routeIndex(namespace string) *routeIndex {
	w.mu.Lock()
	defer w.mu.Unlock()
	if x := w.indexes[namespace]; x != nil {
		return x
	}
	list := w.snap.VirtualServices(namespace, "mesh")
	x := w.oldIdx[namespace]
	if x == nil || !slices.Equal(x.list, list) {
		x = newRouteIndex(w.snap, list)
	}
	w.indexes[namespace] = x
	return x
}

// clientOf is the class of a sidecar, without its locality.
func (w *World) clientOf(p Proxy) client {
	c := client{namespace: p.Namespace}
	sources := w.routeIndex(p.Namespace).sources
	if len(sources) == 0 || p.Workload == nil {
		return c
	}
	c.labels = p.Workload.Labels
	var matched []string
	for _, want := range sources {
		if hasLabels(c.labels, want) {
			matched = append(matched, labelText(want))
		}
	}
	// The text and not, say, the places in the list: those have other meanings when the list changes, and bundles outlive it.
	// A client that matches none is like one without labels.
	slices.Sort(matched)
	c.class = strings.Join(slices.Compact(matched), "&")
	return c
}

// labelText is one text for one set of labels.
func labelText(labels map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k + "=" + labels[k])
	}
	return b.String()
}
