package mesh

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestServicesThatShareAPortAreAllItsTargets(t *testing.T) {
	s := NewStore(Options{})
	young := plainService("a-young", map[string]string{"app": "reviews"}, corev1.ServicePort{Name: "tcp", Port: 1000, TargetPort: intstr.FromInt32(9080)})
	young.Object.(*corev1.Service).CreationTimestamp = metav1.Unix(9, 0)
	s.Apply(append(reviews(), young)...)
	n := s.Snapshot()
	w := n.Workload("default", "reviews-1")
	targets := n.Targets(w)
	if len(targets) != 1 || len(targets[0].Services) != 2 || targets[0].Services[0].Name != "a-young" || targets[0].ServicePorts[0].Number != 1000 {
		t.Fatalf("got %+v", targets)
	}
	if targets[0].Protocol != ProtocolHTTP {
		t.Errorf("protocol %s: the oldest service decides", targets[0].Protocol)
	}
	s.Delete(Key{"Service", "default", "a-young"})
	n = s.Snapshot()
	if targets := n.Targets(w); len(targets) != 1 || len(targets[0].Services) != 1 {
		t.Errorf("after one went: %+v", targets)
	}
	before := n.Targets(w)
	s.Apply(plainService("elsewhere", map[string]string{"app": "other"}, corev1.ServicePort{Port: 80}))
	if after := s.Snapshot().Targets(w); !sameSlice(before, after) {
		t.Error("the targets were made anew although nothing in them changed")
	}
}

func TestNamedTargetPortsAreThoseOfEachPod(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(reviews()...)
	odd := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "odd", Labels: map[string]string{"app": "reviews"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 7000}}}}}}
	without := plainPod("without", "10.0.0.8", map[string]string{"app": "reviews"})
	s.Apply(Object{Object: odd}, without)
	n := s.Snapshot()
	if targets := n.Targets(n.Workload("default", "odd")); len(targets) != 1 || targets[0].Port != 7000 {
		t.Errorf("got %+v", targets)
	}
	if targets := n.Targets(n.Workload("default", "without")); targets != nil {
		t.Errorf("a pod without such a port has %+v", targets)
	}
}
