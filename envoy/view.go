package envoy

import (
	"slices"
	"unsafe"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/weft-mesh/weft/mesh"
)

// A client is a class of proxies that see the mesh alike.
type client struct {
	namespace string
	router    bool
	inline    bool              // route tables hold their virtual hosts
	lazy      bool              // clusters and virtual hosts are there when they were asked for
	locality  mesh.Locality     // zero unless something in the mesh depends on the locality of clients
	labels    map[string]string // nil unless a VirtualService that the namespace sees matches on sourceLabels
	class     string            // those of the sourceLabels that match; equal class means equal answers
}

// A view is a snapshot as one class of clients sees it. It writes down what was read, so that what was built from it
// can be kept for as long as reading again gives the same: then nothing that it was built from has changed.
// (Istio recomputes by declared kinds of dependencies and has to list them; here none can be forgotten.)
type view struct {
	snap   *mesh.Snapshot
	client client
	index  *routeIndex // VirtualServices by host

	reads    []read
	uses     uses
	problems []Problem
}

// uses says which properties of the client shaped the result; clients that differ in others can share it.
type uses uint8

const (
	usesNamespace uses = 1 << iota
	usesLabels
	usesLocality
	usesDiscovery // what is asked for and what is there at once
)

// A read is one question to the snapshot with its answer.
type read interface {
	same(v *view) bool
}

// fork is the same view with nothing read yet.
func (v *view) fork() *view { return &view{snap: v.snap, client: v.client, index: v.index} }

// look asks the snapshot anything, and writes down the answer. equal decides what counts as unchanged.
func look[T any](v *view, ask func(*mesh.Snapshot) T, equal func(a, b T) bool) T {
	got := ask(v.snap)
	v.note(lookRead(func(v *view) bool { return equal(got, ask(v.snap)) }))
	return got
}

type lookRead func(v *view) bool

func (r lookRead) same(v *view) bool { return r(v) }

func (v *view) note(r read) { v.reads = append(v.reads, r) }

// holds reports whether all reads would be answered as before.
func (v *view) holds(reads []read) bool {
	for _, r := range reads {
		if !r.same(v) {
			return false
		}
	}
	return true
}

// problem records a part of the user's configuration that is left out or cannot work.
func (v *view) problem(ref mesh.Ref, field, message string) {
	v.problems = append(v.problems, Problem{Ref: ref, Field: field, Message: message})
}

type meshRead struct{ got *meshconfig.MeshConfig }

func (r meshRead) same(v *view) bool { return v.snap.Mesh() == r.got }

func (v *view) mesh() *meshconfig.MeshConfig {
	m := v.snap.Mesh()
	v.note(meshRead{m})
	return m
}

type serviceRead struct {
	host string
	got  *mesh.Service
}

func (r serviceRead) same(v *view) bool { return v.snap.Service(v.client.namespace, r.host) == r.got }

// service returns nil when the client sees no service of this name.
func (v *view) service(host string) *mesh.Service {
	s := v.snap.Service(v.client.namespace, host)
	v.note(serviceRead{host, s})
	return s
}

type ruleRead struct {
	svc *mesh.Service
	got *mesh.DestinationRule
}

func (r ruleRead) same(v *view) bool {
	return v.snap.DestinationRule(v.client.namespace, r.svc) == r.got
}

func (v *view) rule(svc *mesh.Service) *mesh.DestinationRule {
	d := v.snap.DestinationRule(v.client.namespace, svc)
	v.note(ruleRead{svc, d})
	return d
}

type endpointsRead struct {
	svc  *mesh.Service
	port mesh.Port
	got  []*mesh.Endpoint
}

func (r endpointsRead) same(v *view) bool {
	return sameSlice(v.snap.Endpoints(r.svc, r.port), r.got)
}

func (v *view) endpoints(svc *mesh.Service, port mesh.Port) []*mesh.Endpoint {
	eps := v.snap.Endpoints(svc, port)
	v.note(endpointsRead{svc, port, eps})
	return eps
}

// sameSlice compares identity, not contents.
func sameSlice[T any](a, b []T) bool {
	return len(a) == len(b) && unsafe.SliceData(a) == unsafe.SliceData(b)
}

type modesRead struct {
	endpoints []*mesh.Endpoint
	got       []mesh.MTLSMode
}

func (r modesRead) same(v *view) bool {
	for i, e := range r.endpoints {
		if e.MeshTLS() && endpointMode(v.snap, e) != r.got[i] {
			return false
		}
	}
	return true
}

// modes tells for each endpoint what its server side wants; those without a sidecar count as disabled.
func (v *view) modes(endpoints []*mesh.Endpoint) []mesh.MTLSMode {
	got := make([]mesh.MTLSMode, len(endpoints))
	for i, e := range endpoints {
		got[i] = mesh.MTLSDisable
		if e.MeshTLS() {
			got[i] = endpointMode(v.snap, e)
		}
	}
	if len(endpoints) > 0 {
		v.note(modesRead{endpoints, got})
	}
	return got
}

func endpointMode(s *mesh.Snapshot, e *mesh.Endpoint) mesh.MTLSMode {
	mode, _ := s.ServerMTLS(e.Workload, e.Port)
	return mode
}

type routesRead struct {
	host string
	got  hostRoutes
}

func (r routesRead) same(v *view) bool { return v.index.of(r.host) == r.got }

// routes returns the VirtualServices that rule a host.
func (v *view) routes(host string) hostRoutes {
	got := v.index.of(host)
	v.note(routesRead{host, got})
	return got
}

// hostRoutes are the VirtualServices that rule one host: for each kind of route the most specific, then the oldest.
// Istio: sidecars do not merge VirtualServices of one host.
type hostRoutes struct {
	http, tls, tcp *mesh.VirtualService
}

// A routeIndex finds VirtualServices by host, for the clients of one namespace.
type routeIndex struct {
	list    []*mesh.VirtualService // what it was made of
	exact   map[string]hostRoutes
	wild    []wildRoutes        // most specific first
	sources []map[string]string // all sourceLabels that any of them matches on
}

type wildRoutes struct {
	pattern string
	hostRoutes
}

func newRouteIndex(s *mesh.Snapshot, list []*mesh.VirtualService) *routeIndex {
	x := &routeIndex{list: list, exact: make(map[string]hostRoutes, len(list))}
	wild := map[string]hostRoutes{}
	for _, vs := range list {
		for _, h := range vs.Spec.GetHosts() {
			host := mesh.ResolveHost(h, vs.Namespace, s.ClusterDomain())
			into := x.exact
			if host != "" && host[0] == '*' {
				into = wild
			}
			r := into[host]
			if r.http == nil && len(vs.Spec.GetHttp()) > 0 {
				r.http = vs
			}
			if r.tls == nil && len(vs.Spec.GetTls()) > 0 {
				r.tls = vs
			}
			if r.tcp == nil && len(vs.Spec.GetTcp()) > 0 {
				r.tcp = vs
			}
			into[host] = r
		}
		x.sources = append(x.sources, sourceLabels(vs)...)
	}
	for pattern, r := range wild {
		x.wild = append(x.wild, wildRoutes{pattern, r})
	}
	slices.SortFunc(x.wild, func(a, b wildRoutes) int { return mesh.CompareHosts(a.pattern, b.pattern) })
	return x
}

func (x *routeIndex) of(host string) hostRoutes {
	r := x.exact[host]
	for _, w := range x.wild {
		if r.http != nil && r.tls != nil && r.tcp != nil {
			break
		}
		if !mesh.HostMatches(w.pattern, host) {
			continue
		}
		if r.http == nil {
			r.http = w.http
		}
		if r.tls == nil {
			r.tls = w.tls
		}
		if r.tcp == nil {
			r.tcp = w.tcp
		}
	}
	return r
}

// sourceLabels lists the label sets that the matches of a VirtualService ask of clients.
func sourceLabels(vs *mesh.VirtualService) []map[string]string {
	var all []map[string]string
	for _, h := range vs.Spec.GetHttp() {
		for _, m := range h.GetMatch() {
			if len(m.GetSourceLabels()) > 0 {
				all = append(all, m.GetSourceLabels())
			}
		}
	}
	for _, t := range vs.Spec.GetTls() {
		for _, m := range t.GetMatch() {
			if len(m.GetSourceLabels()) > 0 {
				all = append(all, m.GetSourceLabels())
			}
		}
	}
	for _, t := range vs.Spec.GetTcp() {
		for _, m := range t.GetMatch() {
			if len(m.GetSourceLabels()) > 0 {
				all = append(all, m.GetSourceLabels())
			}
		}
	}
	return all
}

// hasLabels reports whether want is a subset of have.
func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// cameFrom reports whether a match's sourceNamespace and sourceLabels accept the client.
func (v *view) cameFrom(namespace string, labels map[string]string) bool {
	if namespace != "" {
		v.uses |= usesNamespace
		if namespace != v.client.namespace {
			return false
		}
	}
	if len(labels) > 0 {
		v.uses |= usesLabels
		return hasLabels(v.client.labels, labels)
	}
	return true
}
