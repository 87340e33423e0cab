package control

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/netip"
	"sort"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/weft-mesh/weft/sandbox/store"
)

const managedBy = "endpointslice-controller.k8s.io"

// syncEndpoints keeps the EndpointSlices of one Service with a selector: one
// slice per address family and per set of port numbers (pods may disagree
// about a named targetPort). Slices that somebody wrote by hand are left alone.
func (c *Control) syncEndpoints(ctx context.Context, key store.Key) error {
	svc := store.Get[*corev1.Service](c.store(), key.Resource, key.Namespace, key.Name)
	if svc == nil || len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil // slices of a deleted Service go with it: it owns them
	}
	want := c.slices(svc)
	for _, old := range store.List[*discoveryv1.EndpointSlice](c.store(), "endpointslices.discovery.k8s.io", svc.Namespace, labels.SelectorFromSet(labels.Set{
		discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: managedBy,
	})) {
		if want[old.Name] == nil {
			c.store().Remove(store.KeyOf(old))
		}
	}
	for _, slice := range want {
		_, err := c.store().Update(store.KeyOf(slice), func(o store.Object) error {
			s := o.(*discoveryv1.EndpointSlice)
			s.Labels, s.Endpoints, s.Ports = slice.Labels, slice.Endpoints, slice.Ports
			return nil
		})
		if apierrors.IsNotFound(err) {
			_, err = c.API.Create(ctx, slice)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Control) slices(svc *corev1.Service) map[string]*discoveryv1.EndpointSlice {
	out := map[string]*discoveryv1.EndpointSlice{}
	zone := ""
	if n := store.Get[*corev1.Node](c.store(), "nodes", "", c.Node); n != nil {
		zone = n.Labels[corev1.LabelTopologyZone]
	}
	slice := func(family corev1.IPFamily, ports []discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
		h := fnv.New32a()
		fmt.Fprint(h, svc.UID, family)
		for _, p := range ports {
			fmt.Fprint(h, "\x00", *p.Name, *p.Port, *p.Protocol)
		}
		name := svc.Name + "-" + rand.SafeEncodeString(fmt.Sprintf("%05d", h.Sum32()%100000))
		if s := out[name]; s != nil {
			return s
		}
		lb := map[string]string{}
		for k, v := range svc.Labels {
			lb[k] = v
		}
		lb[discoveryv1.LabelServiceName], lb[discoveryv1.LabelManagedBy] = svc.Name, managedBy
		if svc.Spec.ClusterIP == corev1.ClusterIPNone {
			lb[corev1.IsHeadlessService] = ""
		}
		ref := ownerRef(svc)
		out[name] = &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: svc.Namespace, Name: name, Labels: lb, OwnerReferences: []metav1.OwnerReference{ref}},
			AddressType: discoveryv1.AddressType(family), Ports: ports,
		}
		return out[name]
	}
	for _, f := range svc.Spec.IPFamilies {
		// A Service whose pods are not there yet has an empty slice, so that one sees that it was looked after.
		if numbers, ok := endpointPorts(svc, nil); ok {
			slice(f, numbers)
		}
	}
	for _, p := range store.List[*corev1.Pod](c.store(), "pods", svc.Namespace, labels.SelectorFromSet(svc.Spec.Selector)) {
		if finished(p) || len(p.Status.PodIPs) == 0 {
			continue
		}
		ports, ok := endpointPorts(svc, p)
		if !ok {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			addr, err := netip.ParseAddr(ip.IP)
			if err != nil {
				continue
			}
			family := corev1.IPv6Protocol
			if addr.Is4() {
				family = corev1.IPv4Protocol
			}
			if !contains(svc.Spec.IPFamilies, family) {
				continue
			}
			s := slice(family, ports)
			s.Endpoints = append(s.Endpoints, endpoint(svc, p, ip.IP, zone))
		}
	}
	for name, s := range out {
		sort.Slice(s.Endpoints, func(i, j int) bool { return s.Endpoints[i].Addresses[0] < s.Endpoints[j].Addresses[0] })
		// The placeholder is only for Services with no pods at all.
		if len(s.Endpoints) == 0 && othersHaveEndpoints(out, s) {
			delete(out, name)
		}
	}
	return out
}

func othersHaveEndpoints(all map[string]*discoveryv1.EndpointSlice, than *discoveryv1.EndpointSlice) bool {
	for _, s := range all {
		if s != than && s.AddressType == than.AddressType && len(s.Endpoints) > 0 {
			return true
		}
	}
	return false
}

func contains[T comparable](list []T, v T) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

func endpoint(svc *corev1.Service, p *corev1.Pod, ip, zone string) discoveryv1.Endpoint {
	serving, terminating := Ready(p), p.DeletionTimestamp != nil
	ready := serving && !terminating
	if svc.Spec.PublishNotReadyAddresses {
		ready = true
	}
	e := discoveryv1.Endpoint{
		Addresses:  []string{ip},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if p.Spec.NodeName != "" {
		node := p.Spec.NodeName
		e.NodeName = &node
		if zone != "" {
			e.Zone = &zone
		}
	}
	if p.Spec.Hostname != "" && p.Spec.Subdomain == svc.Name {
		host := p.Spec.Hostname
		e.Hostname = &host
	}
	return e
}

// endpointPorts resolves a Service's target ports on one pod; nil means "no
// pod": then named ports cannot be resolved. false means that the pod has none of them.
func endpointPorts(svc *corev1.Service, p *corev1.Pod) ([]discoveryv1.EndpointPort, bool) {
	out := []discoveryv1.EndpointPort{}
	for _, sp := range svc.Spec.Ports {
		number, ok := targetPort(sp, p)
		if !ok {
			continue
		}
		name, proto := sp.Name, sp.Protocol
		out = append(out, discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: &proto, AppProtocol: sp.AppProtocol})
	}
	return out, len(out) > 0 || len(svc.Spec.Ports) == 0
}

func targetPort(sp corev1.ServicePort, p *corev1.Pod) (int32, bool) {
	if sp.TargetPort.Type == intstr.Int {
		return sp.TargetPort.IntVal, true
	}
	if p == nil {
		return 0, false
	}
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for _, ct := range list {
			for _, port := range ct.Ports {
				if port.Name == sp.TargetPort.StrVal && port.Protocol == sp.Protocol {
					return port.ContainerPort, true
				}
			}
		}
	}
	return 0, false
}
