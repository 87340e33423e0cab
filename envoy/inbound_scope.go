package envoy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/redirect"
)

// workloadSet is the workload's own side: the listener that takes what is sent to it, and the clusters that lead to the app. All
// replicas share it; nothing in it names a pod.
func (w *World) workloadSet(p Proxy) *Set {
	p = p.Identified()
	workload, c := p.own.workload, p.own.context
	c.trustDomain = w.snap.TrustDomain()
	name := p.own.scope + w.handmade(workload)
	return w.scope(name, client{namespace: workload.Namespace}, func(v *view, old *scope) (*Set, any) {
		c.mesh = v.mesh()
		return newSet(name, v.snap.Version(), old.set, c.resources(v.inboundPorts(workload))), nil
	}).set
}

func (v *view) inboundPorts(w *mesh.Workload) []inboundPort {
	ports := look(v, func(s *mesh.Snapshot) []inboundPort { return inboundPorts(s, w) },
		func(a, b []inboundPort) bool { return slices.EqualFunc(a, b, inboundPort.equal) })
	for _, t := range v.snap.Targets(w) {
		v.reserved(w, t)
	}
	return ports
}

// resources are the inbound listener and the clusters of its ports.
func (c inboundContext) resources(ports []inboundPort) []*Resource {
	var all []mesh.Ref
	var out []*Resource
	done := map[string]bool{}
	for _, p := range ports {
		all = append(append(all, p.policies...), p.services...)
		if name := p.cluster(); !done[name] {
			done[name] = true
			causes := slices.Clip(p.services)
			if p.rule != nil {
				causes = append(causes, p.rule.Ref)
			}
			out = append(out, newResource(Cluster, name, c.inboundCluster(p), causes...))
		}
	}
	return append(out, newResource(Listener, virtualInbound, c.inboundListener(ports), all...))
}

// proofSet is what the proxy's check of its own redirection needs: the addresses of its pod. It is the only part of a
// proxy's configuration that differs between replicas.
func (w *World) proofSet(p Proxy) *Set {
	p = p.Identified()
	addresses, name := p.addresses(), p.own.proof
	return w.scope(name, client{namespace: p.Namespace}, func(v *view, old *scope) (*Set, any) {
		v.note(unconditional{}) // the scope's name has all that it depends on
		var out []*Resource
		for _, c := range proofClusters(addresses) {
			out = append(out, newResource(Cluster, c.Name, c))
		}
		return newSet(name, v.snap.Version(), old.set, out), nil
	}).set
}

// unconditional is the read of what is built from nothing in the snapshot.
type unconditional struct{}

func (unconditional) same(*view) bool { return true }

// addresses are the pod's, as the proxy knows them; the mesh may hear of them later.
// own is what follows from a Proxy alone, whatever the mesh looks like.
type own struct {
	workload *mesh.Workload
	context  inboundContext // but for the trust domain
	scope    string         // of its workload
	proof    string         // scope
}

// Identified computes once what follows from p alone. A stream asks for its Sets after each change of the mesh, and putting
// the names of scopes together was a tenth of what that cost.
func (p Proxy) Identified() Proxy {
	if p.own != nil {
		return p
	}
	o := &own{workload: p.workload()}
	o.context = inboundContext{families: familiesOf(p.addresses()), transparent: transparent(o.workload)}
	o.scope = workloadScopeName("workload", o.workload, o.context)
	o.proof = "proof"
	for _, a := range p.addresses() {
		o.proof += "/" + a.String()
	}
	p.own = o
	return p
}

func (p Proxy) addresses() []netip.Addr {
	if len(p.Addresses) > 0 {
		return p.Addresses
	}
	return p.workload().Addresses
}

// workload is the pod behind the proxy. While the mesh has not heard of the pod, it is a workload of the same name without labels, to
// which the policies of its namespace and of the mesh apply.
func (p Proxy) workload() *mesh.Workload {
	if p.Workload != nil {
		return p.Workload
	}
	return &mesh.Workload{
		Meta:           mesh.Meta{Ref: mesh.Ref{Kind: "Pod", Namespace: p.Namespace, Name: p.Pod}},
		ServiceAccount: p.ServiceAccount,
		Injected:       true,
	}
}

// transparent reports whether connections are redirected to the sidecar by TPROXY, which keeps the client's address.
func transparent(w *mesh.Workload) bool {
	text := w.Annotations[redirect.Annotation]
	if !strings.Contains(text, string(redirect.TProxy)) { // spares most workloads the decoding
		return false
	}
	spec, err := redirect.Decode(text)
	return err == nil && spec.Mode == redirect.TProxy // without a spec there is no redirection that would have to be met
}

// handmade tells a workload apart that is an endpoint of Services without a selector: then it may have ports that its replicas do not
// have.
func (w *World) handmade(workload *mesh.Workload) string {
	var b strings.Builder
	for _, t := range w.snap.Targets(workload) {
		if slices.ContainsFunc(t.Services, func(s *mesh.Service) bool { return len(s.Selector) == 0 }) {
			fmt.Fprintf(&b, "/%d", t.Port)
		}
	}
	return b.String()
}

// workloadScopeName names all that decides on which ports a workload has and which policies apply to it, besides the snapshot.
func workloadScopeName(kind string, w *mesh.Workload, c inboundContext) string {
	h := xxhash.New()
	for _, k := range slices.Sorted(maps.Keys(w.Labels)) {
		fmt.Fprintf(h, "%q=%q\n", k, w.Labels[k])
	}
	for _, k := range slices.Sorted(maps.Keys(w.ContainerPorts)) {
		fmt.Fprintf(h, "%q:%d\n", k, w.ContainerPorts[k])
	}
	owner := w.Owner
	if owner == "" {
		owner = w.Name
	}
	families := "ipv4"
	switch {
	case c.families.v4 && c.families.v6:
		families = "dual"
	case c.families.v6:
		families = "ipv6"
	}
	if c.transparent {
		families += "-tproxy"
	}
	return fmt.Sprintf("%s/%s/%s@%s/%s/%08x", kind, w.Namespace, owner, w.ServiceAccount, families, uint32(h.Sum64()))
}

func (p inboundPort) equal(q inboundPort) bool {
	return p.number == q.number && p.protocol == q.protocol && p.mode == q.mode && p.service == q.service &&
		p.servicePort == q.servicePort && p.rule == q.rule && slices.Equal(p.policies, q.policies) && slices.Equal(p.services, q.services)
}
