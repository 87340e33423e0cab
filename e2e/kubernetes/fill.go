package kubernetes

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Fill makes services with injected pods behind each, of the size that such objects have in a cluster, in namespace
// default. The nodes and the controllers that would have made them are not there.
func (a *APIServer) Fill(services, podsEach int) {
	a.t.Helper()
	c := a.Client()
	group, ctx := errgroup.WithContext(context.Background())
	group.SetLimit(16)
	for s := range services {
		group.Go(func() error { return fill(ctx, c, s, podsEach) })
	}
	if err := group.Wait(); err != nil {
		a.t.Fatal(err)
	}
}

func fill(ctx context.Context, c client.Client, s, podsEach int) error {
	name := fmt.Sprintf("app-%04d", s)
	meta := func(name string, labels map[string]string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Namespace: "default", Labels: labels}
	}
	service := &corev1.Service{ObjectMeta: meta(name, map[string]string{"app": name}), Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
	}}
	port, portName, tcp, ready := int32(8080), "http", corev1.ProtocolTCP, true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  meta(name+"-x", map[string]string{discoveryv1.LabelServiceName: name}),
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &tcp}},
	}
	always := corev1.ContainerRestartPolicyAlways
	for p := range podsEach {
		n := s*podsEach + p
		ip := fmt.Sprintf("10.%d.%d.%d", 128+n>>16, n>>8&255, n&255)
		node := fmt.Sprintf("node-%d", n%50)
		pod := &corev1.Pod{ObjectMeta: meta(fmt.Sprintf("%s-6d4cf56db6-%05d", name, p), map[string]string{
			"app": name, "version": "v1", "pod-template-hash": "6d4cf56db6", "security.istio.io/tlsMode": "istio",
			"service.istio.io/canonical-name": name, "service.istio.io/canonical-revision": "v1",
		})}
		pod.Annotations = map[string]string{
			"sidecar.istio.io/status": `{"initContainers":["istio-proxy"],"containers":null,"volumes":["istio-token","istio-ca-root-cert"],"templates":["sidecar"],"revision":"default"}`,
			"weft.dev/redirect":       `{"mode":"REDIRECT","inbound":{"exclude":[15020,15021,15090]},"outbound":{"include":["*"]}}`,
			"prometheus.io/scrape":    "true",
		}
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name + "-6d4cf56db6", UID: "u", Controller: &ready}}
		pod.Spec = corev1.PodSpec{
			ServiceAccountName: name, NodeName: node,
			InitContainers: []corev1.Container{{Name: "istio-proxy", Image: "docker.io/envoyproxy/envoy:distroless-v1.40.0", RestartPolicy: &always,
				Args: []string{"--config-yaml", strings.Repeat("bootstrap ", 800)}}},
			Containers: []corev1.Container{{Name: "app", Image: "registry.example/app:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port}}}},
		}
		pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
		if err := put(c, pod); err != nil {
			return err
		}
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, NodeName: &node,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: pod.Name},
		})
	}
	if err := c.Create(ctx, service); err != nil {
		return err
	}
	return c.Create(ctx, slice)
}
