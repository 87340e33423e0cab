package envoy

import (
	"slices"
	"strconv"
	"strings"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/mesh"
)

// A virtualHost is one host in the routes of a port, marshaled: a resource of its own, or a piece of an inline table. What is made of
// it with other domains or under another name is put together from the same bytes.
type virtualHost struct {
	*Resource          // Name is Envoy's VirtualHost.name too: it removes by the one and not by the other
	domains   []string // in the order of Body
	tail      []byte   // of Body, behind name and domains
	clusters  []string // that requests go to, sorted; mirrors included
}

func (h *virtualHost) equal(o *virtualHost) bool {
	return h.Name == o.Name && h.Version == o.Version && slices.Equal(h.Causes, o.Causes)
}

func newVirtualHost(name string, domains []string, routes []*route.Route, causes ...mesh.Ref) *virtualHost {
	return virtualHostOf(&route.VirtualHost{
		Name:                       name,
		Domains:                    domains,
		Routes:                     routes,
		IncludeRequestAttemptCount: true,
	}, causes...)
}

// virtualHostOf takes m over.
func virtualHostOf(m *route.VirtualHost, causes ...mesh.Ref) *virtualHost {
	h := &virtualHost{domains: m.Domains, clusters: clustersOf(m.Routes)}
	name := m.Name
	m.Name, m.Domains = "", nil
	h.tail = marshal(m)
	return h.as(name, h.domains, causes...)
}

// Field numbers of route.v3.VirtualHost.
const (
	fieldHostName    = 1
	fieldHostDomains = 2
)

// as is the same virtual host under a name and with domains of its own.
func (h *virtualHost) as(name string, domains []string, causes ...mesh.Ref) *virtualHost {
	size := len(h.tail) + protowire.SizeTag(fieldHostName) + protowire.SizeBytes(len(name))
	for _, d := range domains {
		size += protowire.SizeTag(fieldHostDomains) + protowire.SizeBytes(len(d))
	}
	b := make([]byte, 0, size)
	b = protowire.AppendTag(b, fieldHostName, protowire.BytesType)
	b = protowire.AppendString(b, name)
	for _, d := range domains {
		b = protowire.AppendTag(b, fieldHostDomains, protowire.BytesType)
		b = protowire.AppendString(b, d)
	}
	r := rawResource(VirtualHost, name, append(b, h.tail...), causes...)
	return &virtualHost{
		Resource: r,
		domains:  domains,
		tail:     r.Body[len(r.Body)-len(h.tail):],
		clusters: h.clusters,
	}
}

// with is the same virtual host with other domains; nil when there are none.
func (h *virtualHost) with(domains []string) *virtualHost {
	switch len(domains) {
	case 0:
		return nil
	case len(h.domains):
		if slices.Equal(domains, h.domains) {
			return h
		}
	}
	return h.as(h.Name, domains, h.Causes...)
}

// clustersOf lists the clusters that routes name.
func clustersOf(routes []*route.Route) []string {
	var out []string
	for _, r := range routes {
		a := r.GetRoute()
		if c := a.GetCluster(); c != "" {
			out = append(out, c)
		}
		for _, c := range a.GetWeightedClusters().GetClusters() {
			out = append(out, c.GetName())
		}
		for _, m := range a.GetRequestMirrorPolicies() {
			out = append(out, m.GetCluster())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// hostDomains lists the names by which clients of a namespace may call a service: its FQDN, the shorter forms that the
// resolver of a pod in that namespace would complete, and its addresses. Ports in Host headers are
// ignored by the route table, so none of them is repeated with a port.
func hostDomains(svc *mesh.Service, clientNamespace, clusterDomain string) []string {
	names := []string{svc.Host}
	suffix := "." + svc.Namespace + ".svc." + clusterDomain
	if short, ok := strings.CutSuffix(svc.Host, suffix); ok && short != "" {
		names = append(names,
			short+"."+svc.Namespace+".svc",
			short+"."+svc.Namespace)
		if svc.Namespace == clientNamespace {
			names = append(names, short)
		}
	}
	if svc.Resolution == mesh.ResolutionHeadless && !strings.HasPrefix(svc.Host, "*") {
		// The pods of a StatefulSet have names of their own: web-0.web.default.svc.cluster.local.
		for _, n := range slices.Clone(names) {
			names = append(names, "*."+n)
		}
	}
	for _, a := range svc.Addresses {
		if a = a.Unmap(); a.Is6() {
			names = append(names, "["+a.String()+"]")
		} else {
			names = append(names, a.String())
		}
	}
	return names
}

// virtualHostName is Istio's: "reviews.default.svc.cluster.local:9080".
func virtualHostName(host string, port uint16) string { return host + ":" + strconv.Itoa(int(port)) }

// vhdsName is the name of a virtual host that is a resource of its own: Envoy finds its table by what stands before the last slash.
func vhdsName(host string, port uint16) string { return strconv.Itoa(int(port)) + "/" + host }
