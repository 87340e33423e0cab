package mesh

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Node is what the mesh knows of a node besides its locality.
type Node struct {
	Name    string
	Runtime string // "containerd://2.1.4" (Kubernetes API: Node.status.nodeInfo.containerRuntimeVersion)
	Kubelet string // "v1.36.3"
	OS      string // "linux"
}

func nodeOf(in *corev1.Node) Node {
	i := in.Status.NodeInfo
	return Node{Name: in.Name, Runtime: i.ContainerRuntimeVersion, Kubelet: i.KubeletVersion, OS: i.OperatingSystem}
}

// Nodes lists the nodes as they were last applied, sorted by name.
func (s *Store) Nodes() []Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Node, 0, len(s.hosts))
	for _, name := range slices.Sorted(maps.Keys(s.hosts)) {
		out = append(out, s.hosts[name])
	}
	return out
}
