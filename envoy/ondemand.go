package envoy

import (
	"slices"
	"strings"
	"sync"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	ondemand "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/on_demand/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// On demand, a sidecar has the listeners and route tables of everything that it may see, and the hosts and clusters that its workload has
// asked for. A request for a host that it has not is held while Envoy asks for "<port>/<authority>"; a connection while it asks for
// the cluster. The answer enters the workload's Demand, and from then on is part of a Set like any other.

// askTimeout bounds the wait for a cluster. Answers take a millisecond; it ends only when the control plane is away.
const askTimeout = 2 * time.Second

// holdAtMost bounds the wait of a request for its route while the control plane is away: the app gets a 504 with the response flag SI (stream idle
// timeout). Routes switch it off for the requests that they take.
const holdAtMost = 15 * time.Second

// askFirst holds requests for unknown hosts and clusters. It stands before all filters that look at the route.
func askFirst() *hcm.HttpFilter {
	return httpFilter("envoy.filters.http.on_demand", &ondemand.OnDemand{
		Odcds: &ondemand.OnDemandCds{Source: fromADS(), Timeout: durationpb.New(askTimeout)},
	})
}

// everyHost is what follows the port in a name of a Demand that means the whole table, with the catch-all for names that nobody has. The xDS server puts
// it there for a workload that has asked for too many of those: a crawler must reach the world as it would without us.
const everyHost = "/*"

// asked is what was made for the Demands of one workload: the newest few, because streams learn of a larger one at different times.
type asked struct {
	mu     sync.Mutex
	idle   int           // for how many Worlds nobody asked for it
	recent []*askedScope // the newest first
}

const askedRecent = 3

// An askedScope is one Set, and how it came about.
type askedScope struct {
	set    *Set
	demand *Demand
	parts  *outboundParts
	alone  map[string]aloneHost // by name
	eager  map[uint16]bool      // tables of which the workload gets everything
}

// An aloneHost is a virtual host for one asked name, made of another: a wildcard's, or the catch-all.
type aloneHost struct {
	from *virtualHost
	*virtualHost
}

// next is what the next World starts with; nil when nobody has asked for long.
func (a *asked) next() *asked {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.idle >= keepIdle || len(a.recent) == 0 {
		return nil
	}
	return &asked{idle: a.idle + 1, recent: slices.Clone(a.recent[:1])}
}

// askedSet is what the workload of a Demand needs beyond what all sidecars of class c have.
func (w *World) askedSet(d *Demand, class *scope, c client) *Set {
	return w.askedScope(d, class, c).set
}

func (w *World) askedScope(d *Demand, class *scope, c client) *askedScope {
	name := scopeName("asked", c) + "@" + d.Workload
	w.mu.Lock()
	a := w.asked[name]
	if a == nil {
		a = &asked{}
		w.asked[name] = a
	}
	w.mu.Unlock()

	a.mu.Lock()
	defer a.mu.Unlock()
	a.idle = 0
	parts := class.parts.(*outboundParts)
	for _, s := range a.recent {
		if s.parts == parts && s.demand.equal(d) {
			return s
		}
	}
	former := &askedScope{}
	if len(a.recent) > 0 {
		former = a.recent[0]
	}
	s := &askedScope{demand: d, parts: parts, alone: map[string]aloneHost{}, eager: map[uint16]bool{}}
	resources := s.resources(former)
	w.pool.intern(resources)
	s.set = newSet(name, w.pool.askedVersion.Add(1), former.set, resources)
	a.recent = append([]*askedScope{s}, a.recent[:min(len(a.recent), askedRecent-1)]...)
	return s
}

func (d *Demand) equal(o *Demand) bool {
	if d == o {
		return true
	}
	for t := range d.Names {
		if !slices.Equal(d.Names[t], o.Names[t]) {
			return false
		}
	}
	return d.Workload == o.Workload
}

// resources of a Demand: the virtual hosts that its names mean, the clusters that those send to and the ones asked for, and their endpoints.
func (s *askedScope) resources(former *askedScope) []*Resource {
	var out []*Resource
	clusters := map[string]bool{}
	add := func(h *virtualHost) {
		if h == nil {
			return
		}
		out = append(out, h.Resource) // perhaps again; newSet keeps one
		for _, c := range h.clusters {
			clusters[c] = true
		}
	}
	for _, name := range s.demand.Names[VirtualHost] {
		table, all := strings.CutSuffix(name, everyHost)
		if port, ok := parsePort(table); ok && all && s.parts.ports[port] != nil {
			s.eager[port] = true
			for _, h := range s.parts.ports[port].owners {
				add(h)
			}
		}
	}
	for _, name := range s.demand.Names[VirtualHost] {
		add(s.host(name, former))
	}
	for _, c := range s.demand.Names[Cluster] {
		clusters[c] = true
		for _, other := range s.parts.beside[c] {
			clusters[other] = true
		}
	}
	for name := range clusters {
		out = append(out, s.parts.cluster(name)...)
	}
	return out
}

// host is what an asked "<port>/<authority>" means; nil when there is no such table or the name is none.
func (s *askedScope) host(asked string, former *askedScope) *virtualHost {
	port, name, ok := splitAsked(asked)
	if !ok {
		return nil
	}
	p := s.parts.ports[port]
	if p == nil || p.names == nil {
		return nil
	}
	place, alone, found := p.names.lookup(name)
	from := p.hosts[len(p.hosts)-1] // the catch-all
	if found {
		if s.eager[port] {
			return p.owners[place]
		}
		if !alone {
			return p.asked[place]
		}
		from = p.hosts[place]
	}
	own := vhdsName(name, port)
	h, have := s.alone[own]
	if !have {
		if h = former.alone[own]; h.from != from {
			h = aloneHost{from, from.as(own, []string{name}, from.Causes...)}
		}
		s.alone[own] = h
	}
	return h.virtualHost
}

// cluster is a cluster with its endpoints. One that nobody has is there without any, as requests to it would otherwise wait until it was
// asked for in vain, each of them; so they get 503 at once, and the real one when that comes into being.
func (p *outboundParts) cluster(name string) []*Resource {
	host, ok := splitCluster(name)
	if !ok {
		return nil
	}
	out := p.realCluster(name, host)
	if len(out) == 0 {
		out = append(out, newResource(Cluster, name, &cluster.Cluster{
			Name:                 name,
			ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
			ConnectTimeout:       connectTimeout(p.config),
		}))
	}
	return out
}

func (p *outboundParts) realCluster(name, host string) []*Resource {
	i, found := slices.BinarySearchFunc(p.bundles, host, func(b *bundle, h string) int { return strings.Compare(b.svc.Host, h) })
	if !found {
		return nil
	}
	var out []*Resource
	for _, r := range p.bundles[i].resources {
		if r.Name == name && (r.Type == Cluster || r.Type == Endpoints) {
			out = append(out, r)
		}
	}
	return out
}
