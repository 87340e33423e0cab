package kube

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/mesh"
)

func TestOfANodeOnlyWhatTheMeshReadsIsKept(t *testing.T) {
	const zone = "topology.kubernetes.io/zone"
	s := &sink{source: &Source{}, kind: "Node"}
	for _, gate := range []string{mesh.GateHook, ""} {
		in := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1", ResourceVersion: "7", Labels: map[string]string{zone: "z1", "team": "a"}, Annotations: map[string]string{"weft.dev/other": "x", "flannel/backend": "{}"}},
			Spec:       corev1.NodeSpec{PodCIDR: "10.244.0.0/24"},
			Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{OperatingSystem: "linux", KernelVersion: "6.18.0"}, Images: []corev1.ContainerImage{{SizeBytes: 1}}},
		}
		want := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{zone: "z1"}}}
		want.Status.NodeInfo.OperatingSystem = "linux"
		if gate != "" {
			in.Annotations[mesh.NodeStartGate] = gate
			want.Annotations = map[string]string{mesh.NodeStartGate: gate}
		}
		out, ok := s.lean(in).(*corev1.Node)
		if d := cmp.Diff(want, out); !ok || d != "" {
			t.Errorf("gate %q: %s", gate, d)
		}
		if got, want := mesh.NodeOf(out), (mesh.Node{Name: "n1", OS: "linux", StartGate: gate}); got != want {
			t.Errorf("the mesh knows %+v, want %+v", got, want)
		}
	}
}
