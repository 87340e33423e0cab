package main

import (
	"fmt"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	clientnetworking "istio.io/client-go/pkg/apis/networking/v1"
	clientsecurity "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

func (s size) namespace(i int) string { return fmt.Sprintf("bench-%d", i%s.Namespaces) }

func serviceName(i int) string { return fmt.Sprintf("svc-%04d", i) }

func objectMeta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + "/" + name)}
}

func (s size) service(i int) *corev1.Service {
	return &corev1.Service{ObjectMeta: objectMeta(s.namespace(i), serviceName(i)), Spec: corev1.ServiceSpec{
		ClusterIP: fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
		Selector: map[string]string{"app": serviceName(i)},
	}}
}

// slice lists n endpoints of a service; those up to replaced have new addresses.
func (s size) slice(i, n, replaced int) *discoveryv1.EndpointSlice {
	name, port, protocol, ready := "http", int32(8080), corev1.ProtocolTCP, true
	meta := objectMeta(s.namespace(i), serviceName(i)+"-x")
	meta.Labels = map[string]string{discoveryv1.LabelServiceName: serviceName(i)}
	out := &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}}}
	for e := range n {
		shift := 0
		if e < replaced {
			shift = 120
		}
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.%d.%d.%d", 128+i/250, i%250, e+1+shift)},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		})
	}
	return out
}

func (s size) pod(i int) *corev1.Pod {
	meta := objectMeta(s.namespace(i), fmt.Sprintf("client-%d", i))
	meta.Annotations = map[string]string{"sidecar.istio.io/status": `{"templates":["sidecar"]}`}
	// Ten replicas of each client, in a Deployment.
	deployment, hash, yes := fmt.Sprintf("client-%d", i/(10*s.Namespaces)), "5d8f9c", true
	meta.Labels = map[string]string{"app": deployment, "pod-template-hash": hash}
	meta.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: deployment + "-" + hash, Controller: &yes}}
	ip := fmt.Sprintf("10.%d.%d.%d", 1+i/62500, i/250%250, i%250+1)
	return &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{ServiceAccountName: "client"}, Status: corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}}
}

func (s size) virtualService(i, version int) *clientnetworking.VirtualService {
	v := &clientnetworking.VirtualService{ObjectMeta: objectMeta(s.namespace(i), serviceName(i))}
	v.Spec.Hosts = []string{serviceName(i)}
	v.Spec.Http = []*networking.HTTPRoute{{
		Headers: &networking.Headers{Response: &networking.Headers_HeaderOperations{Set: map[string]string{"x-version": fmt.Sprint(version)}}},
		Route:   []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: serviceName(i)}}},
	}}
	return v
}

func (s size) destinationRule(i, version int) *clientnetworking.DestinationRule {
	d := &clientnetworking.DestinationRule{ObjectMeta: objectMeta(s.namespace(i), serviceName(i))}
	d.Spec.Host = serviceName(i)
	d.Spec.TrafficPolicy = &networking.TrafficPolicy{ConnectionPool: &networking.ConnectionPoolSettings{
		Tcp: &networking.ConnectionPoolSettings_TCPSettings{MaxConnections: int32(1000 + version)},
	}}
	return d
}

func peerAuthentication(mode security.PeerAuthentication_MutualTLS_Mode) *clientsecurity.PeerAuthentication {
	p := &clientsecurity.PeerAuthentication{ObjectMeta: objectMeta("istio-system", "default")}
	p.Spec.Mtls = &security.PeerAuthentication_MutualTLS{Mode: mode}
	return p
}

// rolled is the service whose pods are rolled out, and how many it has.
const rolled, rolledPods = 1, 100

// objects is the whole mesh.
func (s size) objects() (out []runtime.Object) {
	for i := range s.Namespaces {
		out = append(out, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace(i)}})
	}
	for i := range s.Services {
		n := s.Endpoints
		if i == rolled {
			n = rolledPods
		}
		out = append(out, s.service(i), s.slice(i, n, 0))
	}
	for i := range s.Sidecars {
		out = append(out, s.pod(i))
	}
	return out
}
