package mesh

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// NodeStartGate is an annotation of nodes. The node agent gives it the value GateHook where it and the kernel hold the request by
// which kubelet waits for a pod's proxy (package redirect: Spec.Gate), and takes it away where they do not.
const (
	NodeStartGate = "weft.dev/start-gate"
	GateHook      = "hook"
)

// Node is what the mesh knows of a node besides its locality.
type Node struct {
	Name      string
	OS        string // "linux" (Kubernetes API: Node.status.nodeInfo.operatingSystem)
	StartGate string // the value of NodeStartGate
}

// NodeOf reads a Node.
func NodeOf(in *corev1.Node) Node {
	return Node{Name: in.Name, OS: in.Status.NodeInfo.OperatingSystem, StartGate: in.Annotations[NodeStartGate]}
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
