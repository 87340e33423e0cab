package mesh

import (
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func objects(in ...runtime.Object) []Object {
	out := make([]Object, len(in))
	for i, o := range in {
		out[i] = Object{Object: o}
	}
	return out
}

func meta(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }

func ptr[T any](v T) *T { return &v }

func reviews() []Object {
	pod := func(name, ip, version string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": "reviews", "version": version, "security.istio.io/tlsMode": "istio"}},
			Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 9080}}}}},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip},
		}
	}
	return objects(
		&corev1.Service{ObjectMeta: meta("default", "reviews"), Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.7", Selector: map[string]string{"app": "reviews"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}}}},
		pod("reviews-1", "10.244.0.1", "v1"), pod("reviews-2", "10.244.0.2", "v2"),
		&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "reviews-x", Labels: map[string]string{"kubernetes.io/service-name": "reviews"}},
			AddressType: "IPv4", Ports: []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr(int32(9080))}},
			Endpoints: []discoveryv1.Endpoint{
				{Addresses: []string{"10.244.0.2"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "reviews-2"}},
				{Addresses: []string{"10.244.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "reviews-1"}},
			}},
	)
}

func TestAServiceHasItsPodsAsEndpointsAndThePodsKnowTheService(t *testing.T) {
	s := NewStore(Options{})
	if err := s.Apply(reviews()...); err != nil {
		t.Fatal(err)
	}
	n := s.Snapshot()
	svc := n.Service("default", "reviews.default.svc.cluster.local")
	if svc == nil || len(svc.Ports) != 1 || svc.Ports[0].Protocol != ProtocolHTTP {
		t.Fatalf("service: %+v", svc)
	}
	eps := n.Endpoints(svc, svc.Ports[0])
	if len(eps) != 2 || eps[0].Address.String() != "10.244.0.1" || eps[0].Port != 9080 || eps[1].Workload.Name != "reviews-2" || !eps[1].MeshTLS() {
		t.Fatalf("endpoints: %+v", eps)
	}
	w := n.Workload("default", "reviews-1")
	targets := n.Targets(w)
	if len(targets) != 1 || targets[0].Port != 9080 || targets[0].Services[0] != svc || targets[0].Protocol != ProtocolHTTP {
		t.Fatalf("targets: %+v", targets)
	}
}

func TestAVirtualServiceIsFoundByShortName(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(objects(&networkingv1.VirtualService{ObjectMeta: meta("default", "reviews"), Spec: networking.VirtualService{Hosts: []string{"reviews"},
		Http: []*networking.HTTPRoute{{Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: "reviews"}}}}}}})...)
	n := s.Snapshot()
	got := n.VirtualServicesFor("other", "mesh", "reviews.default.svc.cluster.local")
	if len(got) != 1 || got[0].Spec.Http[0].Route[0].Destination.Host != "reviews.default.svc.cluster.local" {
		t.Fatalf("got %v", got)
	}
}

func TestStrictInTheNamespaceHoldsForItsWorkloads(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(append(reviews(), objects(&securityv1.PeerAuthentication{ObjectMeta: meta("default", "default"), Spec: security.PeerAuthentication{
		Mtls: &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_STRICT}}})...)...)
	n := s.Snapshot()
	mode, refs := n.ServerMTLS(n.Workload("default", "reviews-1"), 9080)
	if mode != MTLSStrict || len(refs) != 1 {
		t.Fatalf("mode %v because of %v", mode, refs)
	}
}

func TestKindsThatNooneKnowsAreNobodysNamesakes(t *testing.T) {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: "gateway.networking.k8s.io", Version: "v1", Kind: "Gateway"})
	u.SetNamespace("a")
	u.SetName("gw")
	key, err := KeyOf(u)
	if err != nil || key != (Key{"Gateway.gateway.networking.k8s.io", "a", "gw"}) {
		t.Errorf("got %v, %v", key, err)
	}
	s := NewStore(Options{})
	s.Apply(gatewayObject("a", "gw", 1, nil))
	if err := s.Apply(Object{Object: u}); err != nil {
		t.Error(err)
	}
	s.Delete(key)
	if s.Snapshot().Gateway("a", "gw") == nil {
		t.Error("the mesh's own Gateway was deleted")
	}
}
