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

// Services with a role, by their index. All proxies see them; on demand, all use those that are rolled and changed.
const (
	rolled   = 1   // its pods are replaced, one by one
	changed  = 7   // what is changed once
	unused   = 9   // nobody uses it, on demand
	firstOwn = 100 // from here on: those of one workload each, on demand; changed ten times a second
)

// rolledPods is how many pods the rolled service has.
const rolledPods = 100

// replicas is how many proxies make one workload.
const replicas = 10

func (s size) namespace(i int) string { return fmt.Sprintf("bench-%d", i%s.Namespaces) }

func serviceName(i int) string { return fmt.Sprintf("svc-%04d", i) }

func (s size) host(i int) string { return serviceName(i) + "." + s.namespace(i) }

// private services are seen in their own namespace only: one in ten of those without a role.
func (s size) private(i int) bool { return s.Namespaces > 1 && i >= firstOwn && i/s.Namespaces%10 == 3 }

func objectMeta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + "/" + name)}
}

func (s size) service(i int) *corev1.Service {
	meta := objectMeta(s.namespace(i), serviceName(i))
	if s.private(i) {
		meta.Annotations = map[string]string{"networking.istio.io/exportTo": "."}
	}
	return &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		ClusterIP: fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
		Selector: map[string]string{"app": serviceName(i)},
	}}
}

// backend is a pod behind a service, with a sidecar. It never connects here.
func (s size) backend(i, e int) *corev1.Pod {
	meta := objectMeta(s.namespace(i), fmt.Sprintf("%s-%d", serviceName(i), e))
	meta.Annotations = map[string]string{"sidecar.istio.io/status": "{}"}
	meta.Labels = map[string]string{"app": serviceName(i), "version": "v1"}
	return running(meta, serviceName(i), fmt.Sprintf("10.%d.%d.%d", 128+i/250, i%250, e+1))
}

func running(meta metav1.ObjectMeta, account, ip string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{ServiceAccountName: account}, Status: corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}}
}

// slice lists n pods of a service; the first ones, so many as are replaced, are new.
func (s size) slice(i, n, replaced int) *discoveryv1.EndpointSlice {
	name, port, protocol, ready := "http", int32(8080), corev1.ProtocolTCP, true
	meta := objectMeta(s.namespace(i), serviceName(i)+"-x")
	meta.Labels = map[string]string{discoveryv1.LabelServiceName: serviceName(i)}
	out := &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}}}
	for e := range n {
		if e < replaced {
			e += n
		}
		pod := s.backend(i, e)
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{pod.Status.PodIP}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name},
		})
	}
	return out
}

// pods is how many endpoints a service has, and how many pods there are to choose them from.
func (s size) pods(i int) (endpoints, all int) {
	switch i {
	case rolled:
		return rolledPods, 2 * rolledPods
	case changed:
		return s.Endpoints, s.Endpoints + 1
	}
	return s.Endpoints, s.Endpoints
}

// deployment tells which workload of its namespace a proxy belongs to.
func (s size) deployment(i int) int { return i / (replicas * s.Namespaces) }

func (s size) account(i int) string { return fmt.Sprintf("client-%d", s.deployment(i)) }

// client is a pod whose proxy connects.
func (s size) client(i int) *corev1.Pod {
	meta := objectMeta(s.namespace(i), fmt.Sprintf("client-%d", i))
	meta.Annotations = map[string]string{"sidecar.istio.io/status": `{"templates":["sidecar"]}`, "weft.dev/discovery": "eager"}
	if s.OnDemand {
		meta.Annotations["weft.dev/discovery"] = "on-demand"
	}
	hash, yes := "5d8f9c", true
	meta.Labels = map[string]string{"app": s.account(i), "pod-template-hash": hash}
	meta.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: s.account(i) + "-" + hash, Controller: &yes}}
	return running(meta, s.account(i), fmt.Sprintf("10.%d.%d.%d", 1+i/62500, i/250%250, i%250+1))
}

// uses lists the services that the app of a client calls.
func (s size) uses(i int) []int {
	all := []int{changed}
	for _, one := range []int{rolled, s.own(i)} {
		if one < s.Services && one != changed {
			all = append(all, one)
		}
	}
	return all
}

// own is a service that only one workload uses, and that it sees.
func (s size) own(i int) int {
	n := s.Services - firstOwn
	workload := s.deployment(i)*s.Namespaces + i%s.Namespaces
	for k := range n {
		own := firstOwn + (workload+k*s.Namespaces)%n
		if !s.private(own) || s.namespace(own) == s.namespace(i) {
			return own
		}
	}
	return changed
}

func (s size) virtualService(i, version int) *clientnetworking.VirtualService {
	v := &clientnetworking.VirtualService{ObjectMeta: objectMeta(s.namespace(i), serviceName(i))}
	v.Spec.Hosts = []string{serviceName(i)}
	v.Spec.Http = []*networking.HTTPRoute{{
		Headers: &networking.Headers{Response: &networking.Headers_HeaderOperations{Set: map[string]string{"x-version": fmt.Sprint(version)}}},
		Route:   []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: serviceName(i)}}},
	}}
	if s.private(i) {
		v.Spec.ExportTo = []string{"."}
	}
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

// objects is the whole mesh.
func (s size) objects() (out []runtime.Object) {
	for i := range s.Namespaces {
		out = append(out, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace(i)}})
	}
	for i := range s.Services {
		endpoints, all := s.pods(i)
		out = append(out, s.service(i), s.slice(i, endpoints, 0))
		for e := range all {
			out = append(out, s.backend(i, e))
		}
	}
	for i := range s.Sidecars + s.Staying {
		out = append(out, s.client(i))
	}
	return out
}
