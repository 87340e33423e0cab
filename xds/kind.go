package xds

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/envoy"
)

// kind decides what a proxy is by what the injector wrote into its pod. A pod
// cannot make itself a gateway by its node ID.
func kind(annotations map[string]string) envoy.Kind {
	var injected struct {
		Templates []string `json:"templates"`
	}
	if err := json.Unmarshal([]byte(annotations["sidecar.istio.io/status"]), &injected); err == nil && injected.Templates != nil {
		if slices.Contains(injected.Templates, "gateway") {
			return envoy.Router
		}
		return envoy.Sidecar
	}
	for name := range strings.SplitSeq(annotations["inject.istio.io/templates"], ",") {
		if strings.TrimSpace(name) == "gateway" {
			return envoy.Router
		}
	}
	return envoy.Sidecar
}
