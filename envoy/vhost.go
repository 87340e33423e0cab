package envoy

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/mesh"
)

// A virtualHost is one entry of a RouteConfiguration, marshaled. Tables of thousands are put together from such pieces without
// touching those that did not change.
type virtualHost struct {
	name    string
	domains []string
	body    []byte // route.VirtualHost
	causes  []mesh.Ref
}

func (h *virtualHost) equal(o *virtualHost) bool {
	return h.name == o.name && bytes.Equal(h.body, o.body) && slices.Equal(h.causes, o.causes)
}

func newVirtualHost(name string, domains []string, routes []*route.Route, causes ...mesh.Ref) *virtualHost {
	m := &route.VirtualHost{
		Name:                       name,
		Domains:                    domains,
		Routes:                     routes,
		IncludeRequestAttemptCount: true,
	}
	return &virtualHost{name: name, domains: domains, body: marshal(m), causes: causes}
}

// without is the same virtual host with fewer domains, or nil when none is left.
func (h *virtualHost) without(taken func(domain string) bool) *virtualHost {
	domains := slices.DeleteFunc(slices.Clone(h.domains), taken)
	if len(domains) == 0 {
		return nil
	}
	m := &route.VirtualHost{}
	if err := proto.Unmarshal(h.body, m); err != nil {
		return nil // not reached: body came from marshal
	}
	m.Domains = domains
	return &virtualHost{name: h.name, domains: domains, body: marshal(m), causes: h.causes}
}

// Field numbers of route.v3.RouteConfiguration.
const (
	fieldTableName         = 1
	fieldTableVirtualHosts = 2
	fieldTableRemove       = 5 // response_headers_to_remove
	fieldTableValidate     = 7
	fieldTableMaxDirect    = 11
	fieldTableIgnorePort   = 14
)

// routeTable puts a RouteConfiguration together. A domain may occur only once in it, or Envoy refuses the whole: the first
// host keeps it. Unknown clusters are not an error (their requests get 503), ports in Host headers are ignored.
func routeTable(name string, hosts []*virtualHost) *Resource {
	size := len(name) + 32
	domains := 0
	for _, h := range hosts {
		size += len(h.body) + 8
		domains += len(h.domains)
	}
	seen := make(map[string]struct{}, domains)
	names := make(map[string]struct{}, len(hosts))
	b := make([]byte, 0, size)
	b = protowire.AppendTag(b, fieldTableName, protowire.BytesType)
	b = protowire.AppendString(b, name)
	causes := make([]mesh.Ref, 0, len(hosts))
	for _, h := range hosts {
		taken := func(d string) bool { _, dup := seen[d]; return dup }
		if slices.ContainsFunc(h.domains, taken) {
			if h = h.without(taken); h == nil {
				continue
			}
		}
		if _, dup := names[h.name]; dup {
			continue
		}
		names[h.name] = struct{}{}
		for _, d := range h.domains {
			seen[d] = struct{}{}
		}
		b = protowire.AppendTag(b, fieldTableVirtualHosts, protowire.BytesType)
		b = protowire.AppendBytes(b, h.body)
		causes = append(causes, h.causes...)
	}
	// The mark is between proxies. An app that passes on the headers of answers would claim not to have got requests that it did get.
	b = protowire.AppendTag(b, fieldTableRemove, protowire.BytesType)
	b = protowire.AppendString(b, undelivered)
	// validate_clusters is a BoolValue: an empty message is false.
	b = protowire.AppendTag(b, fieldTableValidate, protowire.BytesType)
	b = protowire.AppendBytes(b, nil)
	b = protowire.AppendTag(b, fieldTableMaxDirect, protowire.BytesType)
	b = protowire.AppendBytes(b, maxDirectBody)
	b = protowire.AppendTag(b, fieldTableIgnorePort, protowire.VarintType)
	b = protowire.AppendVarint(b, 1)
	r := rawResource(Route, name, b)
	r.Causes = distinct(causes)
	return r
}

// distinct drops repetitions and keeps the order. Nearly all of a table's causes are services, each there once.
func distinct(refs []mesh.Ref) []mesh.Ref {
	seen := map[mesh.Ref]bool{}
	return slices.DeleteFunc(refs, func(r mesh.Ref) bool {
		if r.Kind == "Service" {
			return false
		}
		again := seen[r]
		seen[r] = true
		return again
	})
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

// maxDirectBody is the limit of directResponse bodies, 1 MiB as in Istio; Envoy's default is 4 KiB.
var maxDirectBody = marshal(u32(1 << 20))

// virtualHostName is Istio's: "reviews.default.svc.cluster.local:9080".
func virtualHostName(host string, port uint16) string { return host + ":" + strconv.Itoa(int(port)) }
