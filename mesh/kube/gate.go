package kube

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Held is a proxy that did not become ready, so that its pod's containers were held back: what it said when it was ended.
type Held struct {
	Namespace, Pod, UID string
	Message             string
	Restarts            int32
}

// The sidecar's container, and what the program that waits for it begins its last words with.
const (
	proxyContainer = "istio-proxy"
	waitPrefix     = "weft-wait: "
)

// held tells Config.Held of a pod whose proxy was given up.
func (s *Source) held(in *corev1.Pod) {
	if s.config.Held == nil {
		return
	}
	for _, list := range [][]corev1.ContainerStatus{in.Status.InitContainerStatuses, in.Status.ContainerStatuses} {
		for _, c := range list {
			if c.Name != proxyContainer {
				continue
			}
			for _, state := range []corev1.ContainerState{c.State, c.LastTerminationState} {
				if t := state.Terminated; t != nil && strings.HasPrefix(t.Message, waitPrefix) {
					s.config.Held(Held{in.Namespace, in.Name, string(in.UID), strings.TrimSpace(t.Message), c.RestartCount})
					return
				}
			}
		}
	}
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
