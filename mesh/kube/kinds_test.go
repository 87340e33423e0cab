package kube

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weft-mesh/weft/mesh/manifest"
)

// What can be written into a file must be readable from a cluster too, in every version.
func TestNoMeshKindIsForgotten(t *testing.T) {
	for gvk := range manifest.Scheme().AllKnownTypes() {
		if !strings.HasSuffix(gvk.Group, ".istio.io") || strings.HasSuffix(gvk.Kind, "List") || strings.HasSuffix(gvk.Kind, "Options") || gvk.Kind == "WatchEvent" {
			continue
		}
		i := slices.IndexFunc(meshKinds, func(m meshKind) bool { return m.name == gvk.Kind && m.group == gvk.Group })
		if i < 0 {
			t.Errorf("%s is not read", gvk)
			continue
		}
		if !slices.Contains(meshKinds[i].versions, gvk.Version) {
			t.Errorf("%s is not read: only %v", gvk, meshKinds[i].versions)
		}
	}
	for _, m := range meshKinds {
		for _, v := range m.versions {
			if gvk := (schema.GroupVersionKind{Group: m.group, Version: v, Kind: m.name}); !manifest.Scheme().Recognizes(gvk) {
				t.Errorf("%s cannot be decoded", gvk)
			}
		}
	}
}
