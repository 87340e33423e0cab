package webhook

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/mesh"
)

// checkDiscovery is the parser of mesh.DiscoveryAnnotation.
func checkDiscovery(_ *userSettings, value string) error {
	_, err := mesh.ParseDiscovery(value)
	return err
}

// settleDiscovery writes into a pod that got a sidecar how the sidecar will learn the mesh: for as long as the pod lives, whatever is chosen for its
// namespace or the mesh meanwhile. An Envoy that is on its way with one kind of configuration is never turned to the other.
func settleDiscovery(pod *corev1.Pod, choice mesh.Discovery) {
	sidecar := slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == ProxyName })
	if _, chosen := pod.Annotations[mesh.DiscoveryAnnotation]; chosen || !sidecar {
		return
	}
	if _, own := pod.Annotations[annProxyConfig]; own {
		// Both are as they were a moment ago, when the pod was injected: there is no error.
		if pc, _, err := proxyConfig(nil, pod.Annotations); err == nil {
			if d, err := mesh.ParseDiscovery(pc.GetProxyMetadata()[mesh.DiscoveryVariable]); err == nil {
				choice = d
			}
		}
	}
	pod.Annotations[mesh.DiscoveryAnnotation] = string(choice)
}
