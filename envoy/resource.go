package envoy

import "github.com/weft-mesh/weft/mesh"

// Type is a kind of xDS resource.
type Type uint8

// In the order in which they are sent: make before break.
const (
	Cluster Type = iota
	Endpoints
	Listener
	Route
	Secret
	NumTypes
)

// Resource is one immutable xDS resource: marshaled once, deterministically, and never again.
// Two pointers to the same Resource mean that nothing changed.
type Resource struct {
	Type    Type
	Name    string
	Version string // content hash, hex; equal content means equal version on every replica
	Body    []byte // wire format of the resource message (what goes into Any.value)
	Segment []byte // the same as a length-delimited `resources` entry (field 2) of DeltaDiscoveryResponse
	Causes  []mesh.Ref // the YAML behind it, for NACKs and explain
}

// Set is what one scope contains at one version: for each type the resources sorted by name.
// A Set is immutable. Successive Sets of the same scope share unchanged Resources.
type Set struct {
	Scope     string // identity of the scope, e.g. "outbound/default" or "workload/default/reviews-v1@sa"
	Version   uint64 // increases when the contents change; equal version means equal contents
	Resources [NumTypes][]*Resource
}

// TypeURL is the Any type URL of a Type.
func (t Type) TypeURL() string { return typeURLs[t] }

// TypeOf is the inverse of TypeURL.
func TypeOf(url string) (Type, bool) {
	for t, u := range typeURLs {
		if u == url {
			return Type(t), true
		}
	}
	return 0, false
}

var typeURLs = [NumTypes]string{
	Cluster:   "type.googleapis.com/envoy.config.cluster.v3.Cluster",
	Endpoints: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
	Listener:  "type.googleapis.com/envoy.config.listener.v3.Listener",
	Route:     "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
	Secret:    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
}
