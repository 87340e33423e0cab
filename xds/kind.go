package xds

import (
	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
)

// kind decides what a proxy is by what the injector wrote into its pod. A pod
// cannot make itself a gateway by its node ID.
func kind(annotations map[string]string) envoy.Kind {
	if mesh.IsGateway(annotations) {
		return envoy.Router
	}
	return envoy.Sidecar
}
