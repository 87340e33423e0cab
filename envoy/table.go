package envoy

import (
	"google.golang.org/protobuf/encoding/protowire"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/weft-mesh/weft/mesh"
)

// Field numbers of route.v3.RouteConfiguration.
const (
	fieldTableName         = 1
	fieldTableVirtualHosts = 2
	fieldTableRemove       = 5 // response_headers_to_remove
	fieldTableValidate     = 7
	fieldTableVHDS         = 9
	fieldTableMaxDirect    = 11
	fieldTableIgnorePort   = 14
)

// routeTable is a RouteConfiguration that holds its virtual hosts. A domain may occur only once in it, or Envoy refuses the whole:
// the first host keeps it.
func routeTable(name string, hosts []*virtualHost) *Resource {
	_, owners := indexDomains(hosts)
	return inlineTable(name, owners)
}

// inlineTable holds hosts of which no two have the same domain; nil for none.
func inlineTable(name string, hosts []*virtualHost) *Resource {
	size := len(name) + 64
	for _, h := range hosts {
		if h != nil {
			size += len(h.Body) + 8
		}
	}
	b := make([]byte, 0, size)
	b = protowire.AppendTag(b, fieldTableName, protowire.BytesType)
	b = protowire.AppendString(b, name)
	causes := make([]mesh.Ref, 0, len(hosts))
	for _, h := range hosts {
		if h == nil {
			continue
		}
		b = protowire.AppendTag(b, fieldTableVirtualHosts, protowire.BytesType)
		b = protowire.AppendBytes(b, h.Body)
		causes = append(causes, h.Causes...)
	}
	r := rawResource(Route, name, appendTableEnd(b, nil))
	r.Causes = distinct(causes)
	return r
}

// separateTable is a RouteConfiguration whose virtual hosts are resources of their own.
func separateTable(name string) *Resource {
	b := protowire.AppendTag(nil, fieldTableName, protowire.BytesType)
	b = protowire.AppendString(b, name)
	r := rawResource(Route, name, appendTableEnd(b, byVHDS))
	r.VHDS = true
	return r
}

var byVHDS = marshal(&route.Vhds{ConfigSource: fromADS()})

// appendTableEnd adds what all tables have. Unknown clusters are not an error (their requests get 503), ports in Host headers are ignored.
func appendTableEnd(b, vhds []byte) []byte {
	// The mark is between proxies. An app that passes on the headers of answers would claim not to have got requests that it did get.
	b = protowire.AppendTag(b, fieldTableRemove, protowire.BytesType)
	b = protowire.AppendString(b, undelivered)
	// validate_clusters is a BoolValue: an empty message is false.
	b = protowire.AppendTag(b, fieldTableValidate, protowire.BytesType)
	b = protowire.AppendBytes(b, nil)
	if vhds != nil {
		b = protowire.AppendTag(b, fieldTableVHDS, protowire.BytesType)
		b = protowire.AppendBytes(b, vhds)
	}
	b = protowire.AppendTag(b, fieldTableMaxDirect, protowire.BytesType)
	b = protowire.AppendBytes(b, maxDirectBody)
	b = protowire.AppendTag(b, fieldTableIgnorePort, protowire.VarintType)
	return protowire.AppendVarint(b, 1)
}

// maxDirectBody is the limit of directResponse bodies, 1 MiB as in Istio; Envoy's default is 4 KiB.
var maxDirectBody = marshal(u32(1 << 20))

// distinct drops repetitions and keeps the order. Nearly all of a table's causes are services, each there once.
func distinct(refs []mesh.Ref) []mesh.Ref {
	seen := map[mesh.Ref]bool{}
	out := refs[:0]
	for _, r := range refs {
		if r.Kind != "Service" {
			if seen[r] {
				continue
			}
			seen[r] = true
		}
		out = append(out, r)
	}
	return out
}
