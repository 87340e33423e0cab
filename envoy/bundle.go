package envoy

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/weft-mesh/weft/mesh"
)

// A bundle is everything derived from one host for one class of clients. It is rebuilt only when something it was built from
// changed, and shared between all scopes in which it would come out the same.
type bundle struct {
	inputs
	svc      *mesh.Service
	upstream *upstream
	used     atomic.Uint64 // generation of the last World that contains it

	resources []*Resource   // those of upstream, listeners of its own addresses and their routes
	vhosts    []portHost    // for the routes of ports that several hosts share
	chains    []sharedChain // for listeners on ports that several hosts share
	beside    [][]string    // clusters that one connection may need at once: those of one inline table, with its mirrors
}

// An upstream is the clusters of one host with their endpoints. Those who call it by its short name, and have virtual hosts of their own
// for that, share it with all others.
type upstream struct {
	inputs
	rule      *mesh.DestinationRule // nil when none applies
	resources []*Resource
}

// inputs are what something was derived from.
type inputs struct {
	client   client
	reads    []read        // whose answers depend on the client
	common   []read        // whose answers do not
	checked  atomic.Uint64 // 1 + generation of the World in which common last read the same
	uses     uses
	problems []Problem
}

// portHost is a virtual host in the RouteConfiguration of one port.
type portHost struct {
	port uint16
	*virtualHost
}

// fits reports whether clients of class c may share b, as far as that depends on the clients.
func (b *bundle) fits(c client) bool {
	// Short names mean the service only in its own namespace.
	return b.inputs.fits(c) && (b.client.namespace == b.svc.Namespace) == (c.namespace == b.svc.Namespace)
}

func (in *inputs) fits(c client) bool {
	return in.client.router == c.router &&
		(in.uses&usesNamespace == 0 || in.client.namespace == c.namespace) &&
		(in.uses&usesLabels == 0 || in.client.namespace == c.namespace && in.client.class == c.class) &&
		(in.uses&usesLocality == 0 || in.client.locality == c.locality) &&
		(in.uses&usesDiscovery == 0 || in.client.lazy == c.lazy)
}

// A pool holds what Worlds and scopes share: bundles by host, and single Resources by content.
type pool struct {
	mu        sync.RWMutex
	hosts     map[string][]*bundle
	resources map[content]*Resource
	swept     uint64

	askedVersion atomic.Uint64 // of the newest Set that was made for a Demand
}

type content struct {
	Type          Type
	name, version string
}

func newPool() *pool {
	return &pool{hosts: map[string][]*bundle{}, resources: map[content]*Resource{}}
}

// intern replaces each resource by one of the same content that some scope has already.
func (p *pool) intern(resources []*Resource) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, r := range resources {
		key := content{r.Type, r.Name, r.Version}
		if known := p.resources[key]; known != nil && slices.Equal(known.Causes, r.Causes) {
			resources[i] = known
		} else {
			p.resources[key] = r
		}
	}
}

// one interns a single resource.
func (p *pool) one(r *Resource) *Resource {
	list := []*Resource{r}
	p.intern(list)
	return list[0]
}

func (p *pool) candidates(host string) []*bundle {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.hosts[host]
}

func (p *pool) add(b *bundle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// A new slice: readers hold the old one.
	p.hosts[b.svc.Host] = append([]*bundle{b}, live(p.hosts[b.svc.Host], b.used.Load())...)
}

// bundleLife is for how many Worlds an unused bundle is kept: a change that is undone soon costs nothing.
const bundleLife = 4

func live(bundles []*bundle, generation uint64) []*bundle {
	var out []*bundle
	for _, b := range bundles {
		if b.used.Load()+bundleLife >= generation {
			out = append(out, b)
		}
	}
	return out
}

// sweep forgets, now and then, the bundles of hosts that are gone.
func (p *pool) sweep(generation uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if generation < p.swept+32 {
		return
	}
	p.swept = generation
	clear(p.resources) // sets in use keep theirs
	for host, bs := range p.hosts {
		if bs = live(bs, generation); len(bs) == 0 {
			delete(p.hosts, host)
		} else {
			p.hosts[host] = bs
		}
	}
}

// bundle returns the bundle of a service as v's clients see it.
func (w *World) bundle(v *view, svc *mesh.Service) *bundle {
	var relative *bundle // built for like clients, of older inputs
	var up *upstream
	for _, b := range w.pool.candidates(svc.Host) {
		if b.svc == svc && up == nil && b.upstream.fits(v.client) && b.upstream.holds(v, w.generation) {
			up = b.upstream
		}
		if !b.fits(v.client) {
			continue
		}
		if b.svc == svc && b.holds(v, w.generation) {
			b.used.Store(w.generation)
			return b
		}
		if relative == nil {
			relative = b
		}
	}
	if up == nil {
		up = buildUpstream(v.fork(), svc)
		if relative != nil {
			up.resources = keep(relative.upstream.resources, up.resources)
		}
		up.checked.Store(w.generation + 1)
	}
	b := buildBundle(v.fork(), svc, up)
	if relative != nil {
		b.takeOver(relative)
	}
	w.pool.intern(b.resources)
	b.used.Store(w.generation)
	b.checked.Store(w.generation + 1)
	w.pool.add(b)
	return b
}

// holds reports whether the bundle would come out the same.
func (b *bundle) holds(v *view, generation uint64) bool {
	return b.upstream.holds(v, generation) && b.inputs.holds(v, generation)
}

// holds reports whether all that was read would read the same. What does not depend on the client is looked up once for all scopes.
func (in *inputs) holds(v *view, generation uint64) bool {
	if in.checked.Load() != generation+1 {
		if !v.holds(in.common) {
			return false
		}
		in.checked.Store(generation + 1)
	}
	return v.holds(in.reads)
}

// remember takes over what a view has read.
func (in *inputs) remember(v *view) {
	for _, r := range v.reads {
		switch r.(type) {
		case meshRead, endpointsRead, modesRead:
			in.common = append(in.common, r)
		default:
			in.reads = append(in.reads, r)
		}
	}
	in.client, in.uses, in.problems = v.client, v.uses, v.problems
}

// takeOver keeps old pointers for what came out the same.
func (b *bundle) takeOver(old *bundle) {
	b.resources = keep(old.resources, b.resources)
	takeOver(old.vhosts, b.vhosts)
	for i, c := range b.chains {
		j := slices.IndexFunc(old.chains, func(o sharedChain) bool { return o.port == c.port && o.name == c.name })
		if j >= 0 && old.chains[j].equal(c) {
			b.chains[i] = old.chains[j]
		}
	}
}

// takeOver replaces virtual hosts by old ones that say the same.
func takeOver(old, fresh []portHost) {
	for i, h := range fresh {
		j := slices.IndexFunc(old, func(o portHost) bool { return o.port == h.port && o.Name == h.Name })
		if j >= 0 && old[j].equal(h.virtualHost) {
			fresh[i] = old[j]
		}
	}
}
