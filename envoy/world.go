package envoy

import (
	"net/netip"

	"github.com/weft-mesh/weft/mesh"
)

// Kind is what a proxy does.
type Kind string

const (
	Sidecar Kind = "sidecar"
	Router  Kind = "router" // a gateway
)

// Proxy is one connected Envoy. Namespace, Pod and ServiceAccount come from its verified
// token, Workload from the snapshot; Addresses is what the proxy says of itself and is used for
// nothing but the check that it makes of its own redirection.
type Proxy struct {
	Kind           Kind
	Namespace      string
	Pod            string
	ServiceAccount string
	Workload       *mesh.Workload
	Addresses      []netip.Addr
}

// World is the configuration of every class of proxies for one Snapshot. Scopes are
// built when a proxy first asks and kept while the snapshot lives; what did not change is
// taken over from the previous World.
type World struct {
	// contract only
	_ struct{}
}

// NewWorld derives a World from a snapshot. prev may be nil. It is cheap: work is done in Sets.
func NewWorld(s *mesh.Snapshot, prev *World) *World

// Sets returns what the proxy must have: the scopes it belongs to (outbound, workload,
// its own), disjoint by resource name. Safe for concurrent use. It never fails: an object that cannot be
// translated is left out, and listed in Problems.
func (w *World) Sets(p Proxy) []*Set

// Problem is a part of the user's configuration that could not be translated.
type Problem struct {
	Ref     mesh.Ref
	Field   string // "spec.http[2].route[0].destination.subset"
	Message string // what is wrong and what to do
}

// Problems lists what was found while building the scopes so far, sorted.
func (w *World) Problems() []Problem
