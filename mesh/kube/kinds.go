package kube

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// kind is one list of objects in the API server.
type kind struct {
	name      string // as the mesh calls it: the Go type's
	gvr       schema.GroupVersionResource
	meta      bool // only metadata matters: nothing else is sent
	namespace string
	fields    string // field selector
	selected  bool   // discoverySelectors apply
}

func (k kind) String() string {
	if k.gvr.Group == "" {
		return k.gvr.Version + " " + k.gvr.Resource
	}
	return k.gvr.GroupVersion().String() + " " + k.gvr.Resource
}

var (
	namespaces     = kind{name: "Namespace", gvr: corev1.SchemeGroupVersion.WithResource("namespaces"), meta: true}
	nodes          = kind{name: "Node", gvr: corev1.SchemeGroupVersion.WithResource("nodes")}
	services       = kind{name: "Service", gvr: corev1.SchemeGroupVersion.WithResource("services"), selected: true}
	pods           = kind{name: "Pod", gvr: corev1.SchemeGroupVersion.WithResource("pods"), selected: true}
	endpointSlices = kind{name: "EndpointSlice", gvr: discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), selected: true}
	definitionKind = kind{name: "CustomResourceDefinition", meta: true,
		gvr: schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}}
)

func meshConfig(namespace, name string) kind {
	return kind{name: "ConfigMap", gvr: corev1.SchemeGroupVersion.WithResource("configmaps"), namespace: namespace,
		fields: fields.OneTermEqualSelector("metadata.name", name).String()}
}

// meshKind is a custom resource of Istio's API. All versions of a kind have the same spec;
// the first one that the API server serves is read.
type meshKind struct {
	name, group, plural string
	versions            []string
}

// definition is the name of its CustomResourceDefinition.
func (m meshKind) definition() string { return m.plural + "." + m.group }

var meshKinds = func() (all []meshKind) {
	add := func(group string, versions []string, names ...string) {
		for _, n := range names {
			plural := strings.ToLower(n) + "s"
			if strings.HasSuffix(n, "y") && n != "Gateway" {
				plural = strings.ToLower(strings.TrimSuffix(n, "y")) + "ies"
			}
			all = append(all, meshKind{n, group, plural, versions})
		}
	}
	networking := []string{"v1", "v1beta1", "v1alpha3"}
	add("networking.istio.io", networking, "VirtualService", "DestinationRule", "Gateway", "ServiceEntry", "Sidecar", "WorkloadEntry", "WorkloadGroup")
	add("networking.istio.io", []string{"v1beta1"}, "ProxyConfig")
	add("networking.istio.io", []string{"v1alpha3"}, "EnvoyFilter")
	add("security.istio.io", []string{"v1", "v1beta1"}, "PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy")
	add("telemetry.istio.io", []string{"v1", "v1alpha1"}, "Telemetry")
	add("extensions.istio.io", []string{"v1alpha1"}, "WasmPlugin", "TrafficExtension")
	return all
}()

func meshKindOf(definition string) (meshKind, bool) {
	i := slices.IndexFunc(meshKinds, func(m meshKind) bool { return m.definition() == definition })
	if i < 0 {
		return meshKind{}, false
	}
	return meshKinds[i], true
}

// APIVersion of a kind, as the mesh calls it: "networking.istio.io/v1"; empty for one that is not read here.
func APIVersion(kind string) string {
	switch kind {
	case "Namespace", "Node", "Service", "Pod", "ConfigMap", "Secret":
		return "v1"
	case "EndpointSlice":
		return "discovery.k8s.io/v1"
	}
	for _, m := range meshKinds {
		if m.name == kind {
			return m.group + "/" + m.versions[0]
		}
	}
	return ""
}
