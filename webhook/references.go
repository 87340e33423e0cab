package webhook

import (
	"fmt"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weft-mesh/weft/mesh"
)

// References knows what other objects there are. Its answers are about this moment: what is refered to may come later, so they lead to
// warnings and never to errors. A *mesh.Store is one.
type References interface {
	// Has reports whether an object is there: a Service, Gateway or VirtualService.
	Has(mesh.Key) bool
	// Current is the newest snapshot.
	Current() *mesh.Snapshot
}

// maxWarnings bounds what one answer says: kubectl shows all of it.
const maxWarnings = 10

// dangling lists the references of an object that lead nowhere now.
func dangling(o runtime.Object, namespace string, known References) []string {
	d := &danglers{namespace: namespace, known: known, snap: known.Current(), said: map[string]bool{}}
	switch spec := mesh.SpecOf(o).(type) {
	case *networking.VirtualService:
		d.virtualService(spec)
	case *networking.DestinationRule:
		d.host("spec.host", spec.GetHost(), "the rule has no effect")
	case *networking.Gateway:
		d.gateway(spec)
	}
	return d.warnings
}

type danglers struct {
	namespace string
	known     References
	snap      *mesh.Snapshot
	said      map[string]bool
	warnings  []string
}

func (d *danglers) warn(field, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if d.said[text] || len(d.warnings) == maxWarnings {
		return
	}
	d.said[text] = true
	d.warnings = append(d.warnings, field+": "+text)
}

func (d *danglers) virtualService(v *networking.VirtualService) {
	for i, name := range v.GetGateways() {
		ns, gateway, ok := strings.Cut(name, "/")
		if !ok {
			ns, gateway = d.namespace, name
		}
		if name != "mesh" && !d.known.Has(mesh.Key{Kind: "Gateway", Namespace: ns, Name: gateway}) {
			d.warn(fmt.Sprintf("spec.gateways[%d]", i), "there is no Gateway %s/%s yet: nothing is routed there until there is", ns, gateway)
		}
	}
	const unanswered = "requests to it are answered with 503"
	for i, h := range v.GetHttp() {
		for j, r := range h.GetRoute() {
			d.host(fmt.Sprintf("spec.http[%d].route[%d].destination.host", i, j), r.GetDestination().GetHost(), unanswered)
		}
		if m := h.GetMirror(); m != nil {
			d.host(fmt.Sprintf("spec.http[%d].mirror.host", i), m.GetHost(), "nothing is mirrored")
		}
		for j, m := range h.GetMirrors() {
			d.host(fmt.Sprintf("spec.http[%d].mirrors[%d].destination.host", i, j), m.GetDestination().GetHost(), "nothing is mirrored")
		}
		if t := h.GetDelegate(); t != nil {
			ns := t.GetNamespace()
			if ns == "" {
				ns = d.namespace
			}
			if !d.known.Has(mesh.Key{Kind: "VirtualService", Namespace: ns, Name: t.GetName()}) {
				d.warn(fmt.Sprintf("spec.http[%d].delegate", i), "there is no VirtualService %s/%s yet", ns, t.GetName())
			}
		}
	}
	const closed = "connections to it are closed"
	for i, r := range v.GetTls() {
		for j, to := range r.GetRoute() {
			d.host(fmt.Sprintf("spec.tls[%d].route[%d].destination.host", i, j), to.GetDestination().GetHost(), closed)
		}
	}
	for i, r := range v.GetTcp() {
		for j, to := range r.GetRoute() {
			d.host(fmt.Sprintf("spec.tcp[%d].route[%d].destination.host", i, j), to.GetDestination().GetHost(), closed)
		}
	}
}

// host warns of a host that nobody in the namespace sees.
func (d *danglers) host(field, host, effect string) {
	domain := d.snap.ClusterDomain()
	fqdn := strings.ToLower(mesh.ResolveHost(host, d.namespace, domain))
	if host == "" || strings.Contains(host, "*") || d.snap.Service(d.namespace, fqdn) != nil {
		return
	}
	if service, ok := strings.CutSuffix(fqdn, ".svc."+domain); ok {
		name, ns, ok := strings.Cut(service, ".")
		if ok && d.known.Has(mesh.Key{Kind: "Service", Namespace: ns, Name: name}) {
			return // too new for the snapshot
		}
	}
	d.warn(field, "no Service or ServiceEntry that namespace %s sees has the host %s yet: %s until one has", d.namespace, fqdn, effect)
}

func (d *danglers) gateway(g *networking.Gateway) {
	for w := range d.snap.Workloads() {
		if mesh.SelectorMatches(g.GetSelector(), w.Labels) {
			return
		}
	}
	d.warn("spec.selector", "no pod has these labels yet: nothing serves this Gateway until one has")
}
