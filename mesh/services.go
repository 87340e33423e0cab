package mesh

import (
	"cmp"
	"slices"
	"strings"
	"sync"
)

// serviceID is a service's key in the tables. It begins with the host, so that tables are sorted
// by host, and tells apart several objects that claim one host.
func serviceID(host, namespace, kind, name string) string {
	if kind == "Service" {
		kind = "" // sorts first: a Kubernetes Service wins over service entries
	}
	return host + "\x00" + kind + "\x00" + namespace + "\x00" + name
}

// serviceIndex answers who sees which service. It is shared by all
// snapshots between which no service changed.
type serviceIndex struct {
	all        *table[Service] // by serviceID
	exportTo   []string        // MeshConfig.defaultServiceExportTo
	namespaces map[string]*namespaceServices
	uniform    bool     // every namespace sees every service, and no host is claimed twice
	views      sync.Map // client namespace -> []*Service
}

// namespaceServices is shared while no service of the namespace changed.
type namespaceServices struct {
	services  []*Service
	selectors *selectorIndex[*Service]
}

func newServiceIndex(all *table[Service], exportTo []string, prev *serviceIndex) *serviceIndex {
	x := &serviceIndex{all: all, exportTo: exportTo, uniform: true, namespaces: map[string]*namespaceServices{}}
	byNamespace := map[string][]*Service{}
	host := ""
	for _, s := range all.values() {
		byNamespace[s.Namespace] = append(byNamespace[s.Namespace], s)
		if s.Host == host || !public(s.ExportTo, exportTo) {
			x.uniform = false
		}
		host = s.Host
	}
	for ns, services := range byNamespace {
		if prev != nil {
			if old := prev.namespaces[ns]; old != nil && slices.Equal(old.services, services) {
				x.namespaces[ns] = old
				continue
			}
		}
		selecting := make([]*Service, 0, len(services))
		for _, s := range services {
			if len(s.Selector) > 0 {
				selecting = append(selecting, s)
			}
		}
		x.namespaces[ns] = &namespaceServices{services, newSelectorIndex(selecting, func(s *Service) map[string]string { return s.Selector })}
	}
	return x
}

// service finds the service that a client in namespace means by host.
func (x *serviceIndex) service(client, host string) *Service {
	var best *Service
	for _, s := range x.all.prefix(host + "\x00") {
		if visible(s.ExportTo, x.exportTo, s.Namespace, client) && (best == nil || x.precedes(client, s, best)) {
			best = s
		}
	}
	return best
}

// precedes orders services that claim one host: a Kubernetes Service, the
// client's own namespace, then the oldest.
func (x *serviceIndex) precedes(client string, a, b *Service) bool {
	return cmp.Or(
		-cmpBool(a.Kind == "Service", b.Kind == "Service"),
		-cmpBool(a.Namespace == client, b.Namespace == client),
		byPrecedence(&a.Meta, &b.Meta)) < 0
}

func cmpBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// view lists what a client in namespace sees, one service per host, sorted by host.
func (x *serviceIndex) view(client string) []*Service {
	if x.uniform {
		return x.all.values()
	}
	if v, ok := x.views.Load(client); ok {
		return v.([]*Service)
	}
	var out []*Service
	for _, s := range x.all.values() {
		if !visible(s.ExportTo, x.exportTo, s.Namespace, client) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Host == s.Host {
			if x.precedes(client, s, out[n-1]) {
				out[n-1] = s
			}
			continue
		}
		out = append(out, s)
	}
	v, _ := x.views.LoadOrStore(client, out)
	return v.([]*Service)
}

// selecting calls f with the services whose selector matches the workload.
func (x *serviceIndex) selecting(w *Workload, f func(*Service)) {
	if ns := x.namespaces[w.Namespace]; ns != nil {
		ns.selectors.find(w.Labels, func(_ int, s *Service) { f(s) })
	}
}

// byPrecedence orders objects as Istio resolves conflicts: the oldest first, then by
// name and namespace.
func byPrecedence(a, b *Meta) int {
	return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
