package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/envoy"
)

// A sidecar is Envoy as a control plane knows it, with its ways:
//
//   - It drops what it is sent of a type that it never asked for, without a word, and endpoints and routes that it has not asked for by name.
//   - It asks for no endpoints before its first clusters are there, and for no listeners before these have their endpoints.
//   - From then on it says nothing about clusters while one of them waits for endpoints, and those are all that ends the wait: what
//     it had before does not.
//   - Virtual hosts of a table that it has not are lost on it, though it says that it has them; a table is good for nothing before a message has named something in it; and
//     a question is answered by a resource of that name or alias, by nothing else.
//   - What it refuses, it refuses again, and of a message with such a thing in it, it takes all else (clusters and listeners), or nothing. Then
//     no cluster waits for endpoints any more, be it without any.
type sidecar struct {
	t         testing.TB
	namespace string
	pod       string
	onDemand  bool
	refuses   func(name, version string) bool

	has      [envoy.NumTypes]map[string]*discovery.Resource // in force
	versions [envoy.NumTypes]map[string]string              // what it says that it has
	wants    [envoy.NumTypes]map[string]bool                // by name: endpoints, routes; what its app asked for: clusters, virtual hosts
	watches  [envoy.NumTypes]bool                           // has asked for the type in its life
	cold     map[string]bool                                // clusters that wait for endpoints
	served   map[string]bool                                // clusters that have had some
	complete map[string]bool                                // tables
	waiting  map[string]bool                                // questions without an answer: "<type>name"
	primed   bool                                           // its first clusters may ask for endpoints
	begun    bool                                           // its first clusters are complete

	link  *link
	asked [envoy.NumTypes]bool // on this stream
	later []*discovery.DeltaDiscoveryRequest
	told  []string // what it was sent on this stream, and did not ask for just now
	log   []string
}

func newSidecar(t testing.TB, namespace, pod string, onDemand bool) *sidecar {
	e := &sidecar{t: t, namespace: namespace, pod: pod, onDemand: onDemand, cold: map[string]bool{}, served: map[string]bool{}, complete: map[string]bool{}, waiting: map[string]bool{}}
	for i := range e.has {
		e.has[i], e.versions[i], e.wants[i] = map[string]*discovery.Resource{}, map[string]string{}, map[string]bool{}
	}
	e.watches[envoy.Cluster] = true
	return e
}

func (e *sidecar) note(format string, args ...any) {
	e.log = append(e.log[max(0, len(e.log)-200):], fmt.Sprintf(format, args...))
}

// connect begins a stream; what was on its way on the last is lost.
func (e *sidecar) connect(to *Server) {
	e.disconnect()
	e.note("--- connects")
	e.link = &link{server: to, sidecar: e}
	e.asked, e.later, e.told = [envoy.NumTypes]bool{}, nil, nil
	for _, t := range [...]envoy.Type{envoy.Cluster, envoy.Endpoints, envoy.Listener, envoy.Route, envoy.VirtualHost} {
		names := slices.Sorted(maps.Keys(e.wants[t]))
		byName := t == envoy.Endpoints || t == envoy.Route
		if !e.watches[t] || byName && len(names) == 0 {
			continue
		}
		if !byName && len(names) > 0 {
			names = append([]string{"*"}, names...)
		}
		e.say(t, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names})
	}
}

func (e *sidecar) disconnect() {
	if e.link != nil {
		e.link.close()
		e.link = nil
	}
}

// say sends a request, or keeps it for later when Envoy does not speak about clusters.
func (e *sidecar) say(t envoy.Type, r *discovery.DeltaDiscoveryRequest) {
	if e.link == nil {
		return
	}
	r.TypeUrl = t.TypeURL()
	if t == envoy.Cluster && e.begun && len(e.cold) > 0 {
		e.later = append(e.later, r)
		return
	}
	if !e.asked[t] {
		e.asked[t] = true
		r.InitialResourceVersions = maps.Clone(e.versions[t])
	}
	e.note("says %s nonce %q error %q subscribes %.300q unsubscribes %.300q has %.600v", shortName(t), r.ResponseNonce, r.ErrorDetail.GetMessage(), r.ResourceNamesSubscribe, r.ResourceNamesUnsubscribe, r.InitialResourceVersions)
	e.link.up = append(e.link.up, r)
}

// take is what it does with a response.
func (e *sidecar) take(r *discovery.DeltaDiscoveryResponse) {
	t, ok := envoy.TypeOf(r.TypeUrl)
	if !ok {
		e.t.Fatalf("a response of type %s", r.TypeUrl)
	}
	e.note("is told %s nonce %q %.900v", shortName(t), r.Nonce, content(r))
	if !e.watches[t] {
		return
	}
	once := map[string]bool{}
	ack := &discovery.DeltaDiscoveryRequest{ResponseNonce: r.Nonce}
	for _, res := range r.Resources {
		if once[res.Name] {
			e.t.Fatalf("%s is twice in one response", res.Name)
		}
		once[res.Name] = true
		if res.Resource != nil {
			e.told = append(e.told, res.Name)
			if e.refuses(res.Name, res.Version) {
				ack.ErrorDetail = &status.Status{Code: 13, Message: "Error adding/updating " + res.Name + ": bad"}
			}
		}
	}
	for _, name := range r.RemovedResources {
		if !strings.HasSuffix(name, nothing) && (t != envoy.Cluster || !e.wants[t][name]) {
			e.told = append(e.told, name)
		}
	}
	partly := t == envoy.Cluster || t == envoy.Listener
	if ack.ErrorDetail == nil || partly {
		for _, res := range r.Resources {
			if ack.ErrorDetail == nil || !e.refuses(res.Name, res.Version) {
				e.add(t, res)
			}
			if ack.ErrorDetail == nil && (t != envoy.Endpoints && t != envoy.Route || e.wants[t][res.Name]) {
				e.versions[t][res.Name] = res.Version
			}
		}
		for _, name := range r.RemovedResources {
			e.drop(t, name)
		}
	}
	if t == envoy.Endpoints && ack.ErrorDetail != nil {
		clear(e.cold)
	}
	if len(ack.GetErrorDetail().GetMessage()) > 0 && len(r.Nonce)%2 == 0 {
		ack.ErrorDetail.Message = "something is wrong" // that names nobody
	}
	e.check()
	e.say(t, ack)
	e.follow()
}

func (e *sidecar) add(t envoy.Type, res *discovery.Resource) {
	switch t {
	case envoy.Cluster:
		delete(e.waiting, res.Name)
		e.has[t][res.Name] = res
		if parse(e.t, res).endpoints {
			e.cold[res.Name] = true
		} else {
			delete(e.cold, res.Name)
			e.served[res.Name] = true
		}
		return
	case envoy.Endpoints:
		if !e.wants[t][res.Name] {
			return
		}
		delete(e.cold, res.Name)
		e.served[res.Name] = true
	case envoy.Route:
		if !e.wants[t][res.Name] {
			return
		}
	case envoy.VirtualHost:
		delete(e.waiting, res.Name)
		for _, alias := range res.Aliases {
			delete(e.waiting, alias)
		}
		table := e.has[envoy.Route][tableOf(res.Name)]
		if table == nil || !parse(e.t, table).separate {
			return
		}
		e.complete[tableOf(res.Name)] = true
		if res.Resource == nil {
			return
		}
	}
	e.has[t][res.Name] = res
}

func (e *sidecar) drop(t envoy.Type, name string) {
	delete(e.has[t], name)
	delete(e.versions[t], name)
	switch t {
	case envoy.Cluster:
		delete(e.cold, name)
		delete(e.served, name)
		delete(e.waiting, name)
	case envoy.Endpoints: // none at all is an answer too
		delete(e.cold, name)
		e.served[name] = true
	case envoy.VirtualHost:
		if e.has[envoy.Route][tableOf(name)] != nil {
			e.complete[tableOf(name)] = true
		}
	}
}

// follow asks for what is needed next.
func (e *sidecar) follow() {
	if !e.begun {
		if e.primed {
			e.subscribe(envoy.Endpoints, e.needed(envoy.Cluster))
		}
		if !e.primed || len(e.versions[envoy.Cluster]) == 0 || len(e.cold) > 0 {
			return
		}
		e.begun = true
		e.watches[envoy.Listener] = true
		e.say(envoy.Listener, &discovery.DeltaDiscoveryRequest{})
		return
	}
	e.subscribe(envoy.Endpoints, e.needed(envoy.Cluster))
	e.subscribe(envoy.Route, e.needed(envoy.Listener))
	if !e.watches[envoy.VirtualHost] && slices.ContainsFunc(slices.Collect(maps.Values(e.has[envoy.Route])), func(r *discovery.Resource) bool { return parse(e.t, r).separate }) {
		e.watches[envoy.VirtualHost] = true
		e.say(envoy.VirtualHost, &discovery.DeltaDiscoveryRequest{})
	}
	if len(e.cold) == 0 {
		later := e.later
		e.later = nil
		for _, r := range later {
			e.say(envoy.Cluster, r)
		}
	}
}

// needed are the endpoints of its clusters, or the routes of its listeners.
func (e *sidecar) needed(t envoy.Type) map[string]bool {
	out := map[string]bool{}
	for name, r := range e.has[t] {
		p := parse(e.t, r)
		if p.endpoints {
			out[name] = true
		}
		for _, table := range p.tables {
			out[table] = true
		}
	}
	return out
}

// subscribe makes the subscriptions of a type those of want, and forgets what is not wanted any more.
func (e *sidecar) subscribe(t envoy.Type, want map[string]bool) {
	r := &discovery.DeltaDiscoveryRequest{}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !e.wants[t][name] {
			r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.wants[t])) {
		if want[name] {
			continue
		}
		r.ResourceNamesUnsubscribe = append(r.ResourceNamesUnsubscribe, name)
		delete(e.has[t], name)
		delete(e.versions[t], name)
		if t == envoy.Route {
			delete(e.complete, name)
			maps.DeleteFunc(e.has[envoy.VirtualHost], func(host string, _ *discovery.Resource) bool { return tableOf(host) == name })
		}
	}
	e.wants[t] = want
	if len(r.ResourceNamesSubscribe)+len(r.ResourceNamesUnsubscribe) > 0 {
		if !e.asked[t] && len(want) > 0 { // the first request names all of them
			r.ResourceNamesSubscribe, r.ResourceNamesUnsubscribe = slices.Sorted(maps.Keys(want)), nil
		}
		e.watches[t] = true
		e.say(t, r)
	}
}

// ask is what it does when its app names hosts, or a connection's cluster, that it does not know and has not asked for.
func (e *sidecar) ask(t envoy.Type, names ...string) {
	if !e.watches[t] || !e.begun || !e.onDemand {
		return
	}
	names = slices.DeleteFunc(names, func(n string) bool { return e.wants[t][n] || e.has[t][n] != nil })
	if len(names) == 0 {
		return
	}
	for _, n := range names {
		e.wants[t][n], e.waiting[n] = true, true
	}
	if e.link != nil && !e.asked[t] && t == envoy.VirtualHost {
		names = append([]string{"*"}, slices.Sorted(maps.Keys(e.wants[t]))...)
	}
	e.say(t, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names})
}

// check looks for virtual hosts that send requests to clusters that are not there, or have never had endpoints.
func (e *sidecar) check() {
	if !e.onDemand || e.refuses("", "") {
		return
	}
	for name, r := range e.has[envoy.VirtualHost] {
		for _, c := range parse(e.t, r).clusters {
			if e.has[envoy.Cluster][c] == nil || !e.served[c] {
				e.fatalf("virtual host %s leads to cluster %s, which is missing", name, c)
			}
		}
	}
}

func (e *sidecar) fatalf(format string, args ...any) {
	e.t.Helper()
	e.t.Fatalf("%s/%s: %s\nThe conversation:\n%s", e.namespace, e.pod, fmt.Sprintf(format, args...), strings.Join(e.log, "\n"))
}

// lacks says how what it has differs from what it should have; empty when it does not.
func (e *sidecar) lacks(sets []*envoy.Set) string {
	var wrong []string
	for _, t := range [...]envoy.Type{envoy.Cluster, envoy.Endpoints, envoy.Listener, envoy.Route, envoy.VirtualHost} {
		want := map[string]*envoy.Resource{}
		for _, s := range sets {
			for _, r := range s.Resources[t] {
				if t != envoy.Endpoints && t != envoy.Route || e.wants[t][r.Name] {
					want[r.Name] = r
				}
			}
		}
		for name, r := range want {
			got := e.has[t][name]
			switch {
			case e.refuses(name, r.Version), t == envoy.VirtualHost && e.has[envoy.Route][tableOf(name)] == nil:
			case got == nil:
				wrong = append(wrong, fmt.Sprintf("%s %s is missing", shortName(t), name))
			case got.Version != r.Version:
				wrong = append(wrong, fmt.Sprintf("%s %s is old: %s instead of %s", shortName(t), name, got.Version, r.Version))
			}
		}
		for name := range e.has[t] {
			if want[name] == nil && !e.refuses("", "") { // of what it refuses in part, a server does not know what it took
				wrong = append(wrong, fmt.Sprintf("%s %s is left over", shortName(t), name))
			}
		}
	}
	for name := range e.cold {
		wrong = append(wrong, "cluster "+name+" waits for its endpoints")
	}
	for name := range e.waiting {
		if e.refuses("", "") && strings.Contains(name, "|") {
			continue // a cluster that it refuses
		}
		wrong = append(wrong, "nobody answered the question for "+name)
	}
	for name, r := range e.has[envoy.Route] {
		if parse(e.t, r).separate && !e.complete[name] {
			wrong = append(wrong, "table "+name+" waits for virtual hosts")
		}
	}
	slices.Sort(wrong)
	return strings.Join(wrong, "\n")
}

// parsed is what a sidecar makes of a resource.
type parsed struct {
	endpoints bool     // a cluster that fetches them
	tables    []string // that a listener fetches
	separate  bool     // a table that fetches its virtual hosts
	clusters  []string // that a virtual host names
}

var parsedBodies = map[string]*parsed{} // used by one test at a time

func parse(t testing.TB, r *discovery.Resource) *parsed {
	if p := parsedBodies[string(r.Resource.Value)+r.Resource.TypeUrl]; p != nil {
		return p
	}
	m, err := r.Resource.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	p := &parsed{}
	switch m := m.(type) {
	case *cluster.Cluster:
		p.endpoints = m.GetType() == cluster.Cluster_EDS
	case *route.RouteConfiguration:
		p.separate = m.GetVhds() != nil
	case *listener.Listener:
		for _, chain := range append(m.FilterChains, m.DefaultFilterChain) {
			for _, f := range chain.GetFilters() {
				var h hcm.HttpConnectionManager
				if f.GetTypedConfig().MessageIs(&h) && proto.Unmarshal(f.GetTypedConfig().Value, &h) == nil && h.GetRds() != nil {
					p.tables = append(p.tables, h.GetRds().RouteConfigName)
				}
			}
		}
	case *route.VirtualHost:
		for _, r := range m.Routes {
			a := r.GetRoute()
			if c := a.GetCluster(); c != "" {
				p.clusters = append(p.clusters, c)
			}
			for _, c := range a.GetWeightedClusters().GetClusters() {
				p.clusters = append(p.clusters, c.Name)
			}
			for _, m := range a.GetRequestMirrorPolicies() {
				p.clusters = append(p.clusters, m.Cluster)
			}
		}
	}
	parsedBodies[string(r.Resource.Value)+r.Resource.TypeUrl] = p
	return p
}
