package install

import (
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// sidecarred is what injection makes of a pod; env is what a release has changed in its template.
func sidecarred(p *corev1.Pod, env string) *corev1.Pod {
	p = p.DeepCopy()
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations["sidecar.istio.io/status"] = `{"revision":"default"}`
	p.Labels["service.istio.io/canonical-name"] = "app"
	p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{
		Name: "istio-proxy", Image: "envoy:1", Env: []corev1.EnvVar{{Name: "NEWS", Value: env}}, Args: []string{p.Labels["statefulset.kubernetes.io/pod-name"]},
		VolumeMounts: []corev1.VolumeMount{{Name: "istio-token"}, {Name: "kube-api-access-" + string(p.UID)}},
	})
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "istio-token"}, corev1.Volume{Name: "kube-api-access-" + string(p.UID)})
	return p
}

// TestAChangedTemplateAsksForARestart though the image of the proxy stays the same, and nothing asks for one when nothing changed.
func TestAChangedTemplateAsksForARestart(t *testing.T) {
	yes := true
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "app"}}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "app", VolumeMounts: []corev1.VolumeMount{{Name: "data"}}}}}}
	pod := func(kind, owner, name string, labels map[string]string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "app"},
			OwnerReferences: []metav1.OwnerReference{{Kind: kind, Name: owner, UID: types.UID(owner), Controller: &yes}}}, Spec: *template.Spec.DeepCopy()}
		for k, v := range labels {
			p.Labels[k] = v
		}
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
		return sidecarred(p, "of yesterday")
	}
	ordinal := func(name string) map[string]string {
		return map[string]string{"statefulset.kubernetes.io/pod-name": name}
	}
	meta := metav1.ObjectMeta{Namespace: "shop", Name: "db"}
	objects := []runtime.Object{
		&appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1"}, Spec: appsv1.ReplicaSetSpec{Template: template}},
		&appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Template: template}},
		pod("ReplicaSet", "web-1", "web-1-a", nil), pod("ReplicaSet", "web-1", "web-1-b", nil),
		pod("StatefulSet", "db", "db-0", ordinal("db-0")), pod("StatefulSet", "db", "db-1", ordinal("db-1")),
		pod("Job", "once", "once-x", nil), pod("ReplicaSet", "gone", "gone-x", nil),
	}
	for _, c := range []struct {
		name, env string
		want      []Outdated
		asked     int
	}{
		{"the same", "of yesterday", nil, 3},
		{"another environment", "of today", []Outdated{{"shop", "Deployment", 2}, {"shop", "StatefulSet", 2}}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			api, asked := fake.NewClientset(objects...), 0
			api.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
				create := a.(clienttesting.CreateActionImpl)
				p := create.GetObject().(*corev1.Pod)
				if !slices.Equal(create.CreateOptions.DryRun, []string{metav1.DryRunAll}) {
					t.Error("a pod was made")
				}
				if p.Name != "" || len(p.OwnerReferences) != 1 || len(p.Spec.Volumes) != 1 {
					t.Errorf("asked for %+v", p)
				}
				asked++
				return true, sidecarred(p, c.env), nil
			})
			got, err := (&Cluster{Interface: api}).Outdated(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, c.want) || asked != c.asked {
				t.Errorf("asked %d times, outdated are %v; want %d, %v", asked, got, c.asked, c.want)
			}
		})
	}
}
