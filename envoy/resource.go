package envoy

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/mesh"
)

// Type is a kind of xDS resource.
type Type uint8

// In the order in which they are sent: make before break.
const (
	Cluster Type = iota
	Endpoints
	Listener
	Route
	VirtualHost // delta only; Name is also VirtualHost.name: "<route config>/<host>", as in "80/reviews.default.svc.cluster.local"
	Secret
	NumTypes
)

// Resource is one immutable xDS resource: marshaled once, deterministically, and never again.
// Two pointers to the same Resource mean that nothing changed.
type Resource struct {
	Type    Type
	Name    string
	Version string     // content hash; equal content means equal version on every replica
	Body    []byte     // wire format of the resource message (what goes into Any.value)
	Segment []byte     // the same as a length-delimited `resources` entry (field 2) of DeltaDiscoveryResponse
	Causes  []mesh.Ref // the YAML behind it, for NACKs and explain
	Private bool       // holds a private key: only for the proxy itself, over TLS
	VHDS    bool       // a Route that takes its virtual hosts by VHDS: its table is not complete before VHDS has said something about it
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
	Cluster:     "type.googleapis.com/envoy.config.cluster.v3.Cluster",
	Endpoints:   "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
	Listener:    "type.googleapis.com/envoy.config.listener.v3.Listener",
	Route:       "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
	VirtualHost: "type.googleapis.com/envoy.config.route.v3.VirtualHost",
	Secret:      "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
}

// Field numbers of the messages that newResource writes by hand
// (envoy/service/discovery/v3/discovery.proto: DeltaDiscoveryResponse, Resource; google/protobuf/any.proto).
const (
	fieldResources       = 2
	fieldResourceVersion = 1
	fieldResourceBody    = 2
	fieldResourceName    = 3
	fieldAnyType         = 1
	fieldAnyValue        = 2
)

// newResource marshals a message. Causes are those objects of the user that shaped it.
func newResource(t Type, name string, message proto.Message, causes ...mesh.Ref) *Resource {
	return rawResource(t, name, marshal(message), causes...)
}

// rawResource makes a resource of a body that is marshaled already. The body is copied once, into the segment.
func rawResource(t Type, name string, body []byte, causes ...mesh.Ref) *Resource {
	version := versionOf(body)
	url := typeURLs[t]
	anyLen := protowire.SizeTag(fieldAnyType) + protowire.SizeBytes(len(url)) +
		protowire.SizeTag(fieldAnyValue) + protowire.SizeBytes(len(body))
	entryLen := protowire.SizeTag(fieldResourceName) + protowire.SizeBytes(len(name)) +
		protowire.SizeTag(fieldResourceVersion) + protowire.SizeBytes(len(version)) +
		protowire.SizeTag(fieldResourceBody) + protowire.SizeBytes(anyLen)

	b := make([]byte, 0, protowire.SizeTag(fieldResources)+protowire.SizeBytes(entryLen))
	b = protowire.AppendTag(b, fieldResources, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(entryLen))
	b = protowire.AppendTag(b, fieldResourceName, protowire.BytesType)
	b = protowire.AppendString(b, name)
	b = protowire.AppendTag(b, fieldResourceVersion, protowire.BytesType)
	b = protowire.AppendString(b, version)
	b = protowire.AppendTag(b, fieldResourceBody, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(anyLen))
	b = protowire.AppendTag(b, fieldAnyType, protowire.BytesType)
	b = protowire.AppendString(b, url)
	b = protowire.AppendTag(b, fieldAnyValue, protowire.BytesType)
	b = protowire.AppendBytes(b, body) // last, so that Body can be a part of Segment
	return &Resource{
		Type:    t,
		Name:    name,
		Version: version,
		Body:    b[len(b)-len(body):],
		Segment: b,
		Causes:  compactRefs(causes),
	}
}

// versionOf is a hash in base64: each proxy that connects again says one for each resource that it has.
func versionOf(body []byte) string {
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], xxhash.Sum64(body))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

var deterministic = proto.MarshalOptions{Deterministic: true}

// marshal is deterministic within one build of the program; versions of resources depend on it.
func marshal(m proto.Message) []byte {
	b, err := deterministic.Marshal(m)
	if err != nil {
		// The only cause is invalid UTF-8, which every source refuses: JSON and YAML decoders, and protobuf itself.
		panic(fmt.Sprintf("marshal %T: %v", m, err))
	}
	return b
}

func compactRefs(refs []mesh.Ref) []mesh.Ref {
	if len(refs) < 2 {
		return refs
	}
	refs = slices.Clone(refs)
	slices.SortFunc(refs, compareRefs)
	return slices.Compact(refs)
}

func compareRefs(a, b mesh.Ref) int {
	if c := strings.Compare(a.Kind, b.Kind); c != 0 {
		return c
	}
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// keep returns old in place of fresh where both say the same, so that pointers stay what they were.
func keep(old, fresh []*Resource) []*Resource {
	if len(old) == 0 {
		return fresh
	}
	before := make(map[string]*Resource, len(old))
	for _, r := range old {
		before[r.Name] = r
	}
	for i, r := range fresh {
		if o := before[r.Name]; o != nil && o.Type == r.Type && o.Version == r.Version && slices.Equal(o.Causes, r.Causes) {
			fresh[i] = o
		}
	}
	return fresh
}

// newSet sorts resources into a Set and takes over from prev (which may be nil) what did not change: single
// Resources, or the whole Set. version, used when something changed, must be above those of the scope's former Sets:
// the snapshot's is. Of two resources with one name the first stays.
func newSet(scope string, version uint64, prev *Set, resources []*Resource) *Set {
	s := &Set{Scope: scope, Version: version}
	for _, r := range resources {
		s.Resources[r.Type] = append(s.Resources[r.Type], r)
	}
	same := prev != nil
	for t := range s.Resources {
		rs := s.Resources[t]
		slices.SortStableFunc(rs, func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
		rs = slices.CompactFunc(rs, func(a, b *Resource) bool { return a.Name == b.Name })
		if prev != nil && !slices.Equal(rs, prev.Resources[t]) {
			rs = keep(prev.Resources[t], rs)
		}
		s.Resources[t] = rs
		same = same && slices.Equal(rs, prev.Resources[t])
	}
	if same {
		return prev
	}
	return s
}
