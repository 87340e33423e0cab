package envoy

import (
	"net"
	"testing"

	"github.com/weft-mesh/weft/mesh"
)

// ServeDelta serves a World, and those that follow, to the Envoy of a lab by the real xDS server: to every sidecar the on-demand way or to
// none. Package xds imports this one, so the server is made by the external tests, see xds_test.go.
var ServeDelta func(t *testing.T, ln net.Listener, onDemand bool) XDS

// XDS is a running xDS server.
type XDS interface {
	Publish(*World)
	Stop()
}

// Snapshot is what the World was made of.
func (w *World) Snapshot() *mesh.Snapshot { return w.snap }
