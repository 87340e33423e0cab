package mesh

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestTheOwnerIsTheControllerAUserThinksOf(t *testing.T) {
	for _, c := range []struct {
		kind, name string
		labels     map[string]string
		want       string
	}{
		{"ReplicaSet", "reviews-v1-5d4f8c7b9", map[string]string{"pod-template-hash": "5d4f8c7b9"}, "Deployment reviews-v1"},
		{"ReplicaSet", "lone", nil, "ReplicaSet lone"},
		{"StatefulSet", "web", nil, "StatefulSet web"},
		{"DaemonSet", "agent", nil, "DaemonSet agent"},
		{"Job", "backup-28123456", nil, "CronJob backup"},
		{"Job", "migrate", nil, "Job migrate"},
		{"ReplicationController", "x-1", map[string]string{"deploymentconfig": "x"}, "DeploymentConfig x"},
		{"", "", nil, "Pod p"},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", Labels: c.labels}}
		if c.kind != "" {
			pod.OwnerReferences = []metav1.OwnerReference{{Kind: "Ignored", Name: "not-the-controller"}, {Kind: c.kind, Name: c.name, Controller: ptr(true)}}
		}
		name, kind := owner(&pod.ObjectMeta)
		if got := kind + " " + name; got != c.want {
			t.Errorf("%s %s: %s, want %s", c.kind, c.name, got, c.want)
		}
	}
}

func TestInjectedPodsAreKnownByLabelOrAnnotation(t *testing.T) {
	for _, c := range []struct {
		labels, annotations map[string]string
		want                bool
	}{
		{nil, nil, false},
		{nil, map[string]string{"sidecar.istio.io/status": "{}"}, true},
		{map[string]string{"security.istio.io/tlsMode": "istio"}, nil, true},
		{map[string]string{"security.istio.io/tlsMode": "disabled"}, map[string]string{"sidecar.istio.io/status": "{}"}, false},
	} {
		if got := injected(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: c.labels, Annotations: c.annotations}}); got != c.want {
			t.Errorf("labels %v, annotations %v: %v", c.labels, c.annotations, got)
		}
	}
}

func TestAPodIsKeptLean(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", Annotations: map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{...}", "a": "b"}},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{
				{Ports: []corev1.ContainerPort{{Name: "init", ContainerPort: 1}}},
				{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "sidecar", ContainerPort: 2}, {Name: "http", ContainerPort: 3}}},
			},
			Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}, {ContainerPort: 81}}}},
		},
		Status: corev1.PodStatus{PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}},
	}
	s := NewStore(Options{})
	s.Apply(Object{Object: pod})
	w := s.Snapshot().Workload("default", "p")
	if len(w.Annotations) != 1 || w.ServiceAccount != "default" || len(w.Addresses) != 2 {
		t.Errorf("got %+v", w)
	}
	if len(w.ContainerPorts) != 2 || w.ContainerPorts["http"] != 80 || w.ContainerPorts["sidecar"] != 2 {
		t.Errorf("ports %v", w.ContainerPorts)
	}
	if pod.Annotations["kubectl.kubernetes.io/last-applied-configuration"] == "" {
		t.Error("the caller's object was modified")
	}
}
