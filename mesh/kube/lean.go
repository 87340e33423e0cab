package kube

import (
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/mesh"
)

// lean returns an object with what the mesh reads of it, and no more. Pods and
// slices, of which there are many, shrink to a tenth.
func (k *sink) lean(in any) any {
	s := k.source
	switch o := in.(type) {
	case *metav1.PartialObjectMetadata:
		return s.leanMetadata(k.kind, o)
	case *corev1.Pod:
		return s.leanPod(o)
	case *corev1.Node:
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: o.Name, Labels: topology(o.Labels)}}
		if gate, ok := o.Annotations[mesh.NodeStartGate]; ok {
			node.Annotations = map[string]string{mesh.NodeStartGate: s.words.one(gate)}
		}
		node.Status.NodeInfo.OperatingSystem = s.words.one(o.Status.NodeInfo.OperatingSystem)
		return node
	case *corev1.Secret:
		data := make(map[string][]byte)
		for _, key := range mesh.CredentialKeys {
			if value, ok := o.Data[key]; ok {
				data[key] = value
			}
		}
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: o.Name, Namespace: o.Namespace, UID: o.UID}, Data: data}
	case *corev1.Service:
		return &corev1.Service{ObjectMeta: s.leanMeta(&o.ObjectMeta), Spec: corev1.ServiceSpec{
			Type: o.Spec.Type, ExternalName: o.Spec.ExternalName, ClusterIP: o.Spec.ClusterIP, ClusterIPs: o.Spec.ClusterIPs,
			Selector: s.words.all(o.Spec.Selector), Ports: o.Spec.Ports,
		}}
	case *discoveryv1.EndpointSlice:
		return &discoveryv1.EndpointSlice{ObjectMeta: s.leanMeta(&o.ObjectMeta), AddressType: o.AddressType, Endpoints: o.Endpoints, Ports: o.Ports}
	case *corev1.ConfigMap:
		return &corev1.ConfigMap{ObjectMeta: s.leanMeta(&o.ObjectMeta), Data: o.Data}
	case metav1.Object: // a mesh kind: the spec is what it is about
		o.SetManagedFields(nil)
		o.SetLabels(s.words.all(o.GetLabels()))
		o.SetAnnotations(s.annotations(o.GetAnnotations()))
	}
	return in
}

// leanMetadata gives an object of which only the metadata was read the type that the mesh knows it by.
func (s *Source) leanMetadata(kind string, o *metav1.PartialObjectMetadata) any {
	switch kind {
	case "Namespace":
		return &corev1.Namespace{ObjectMeta: s.leanMeta(&o.ObjectMeta)}
	}
	return o
}

// topology leaves those labels of a node that say where it is.
func topology(in map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range in {
		if strings.HasPrefix(k, "topology.") || strings.HasPrefix(k, "failure-domain.beta.kubernetes.io/") {
			out[k] = v
		}
	}
	return out
}

func (s *Source) leanPod(in *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{
		ObjectMeta: s.leanMeta(&in.ObjectMeta),
		Spec: corev1.PodSpec{
			ServiceAccountName: s.words.one(in.Spec.ServiceAccountName),
			NodeName:           s.words.one(in.Spec.NodeName),
			HostNetwork:        in.Spec.HostNetwork,
		},
		Status: corev1.PodStatus{Phase: in.Status.Phase, PodIP: in.Status.PodIP, PodIPs: in.Status.PodIPs},
	}
	if owner := metav1.GetControllerOfNoCopy(in); owner != nil {
		out.OwnerReferences = []metav1.OwnerReference{{Kind: owner.Kind, Name: s.words.one(owner.Name), Controller: owner.Controller}}
	}
	out.Spec.Containers = s.leanContainers(in.Spec.Containers)
	out.Spec.InitContainers = s.leanContainers(in.Spec.InitContainers)
	return out
}

// leanContainers keeps named ports, by which Services may refer to them.
func (s *Source) leanContainers(in []corev1.Container) (out []corev1.Container) {
	for _, c := range in {
		lean := corev1.Container{RestartPolicy: c.RestartPolicy}
		for _, p := range c.Ports {
			if p.Name != "" {
				lean.Ports = append(lean.Ports, corev1.ContainerPort{Name: s.words.one(p.Name), ContainerPort: p.ContainerPort})
			}
		}
		if len(lean.Ports) > 0 {
			out = append(out, lean)
		}
	}
	return out
}

func (s *Source) leanMeta(in *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:              in.Name,
		Namespace:         s.words.one(in.Namespace),
		UID:               in.UID,
		CreationTimestamp: in.CreationTimestamp,
		DeletionTimestamp: in.DeletionTimestamp,
		Labels:            s.words.all(in.Labels),
		Annotations:       s.annotations(in.Annotations),
	}
}

// annotations keeps those that are the mesh's business.
func (s *Source) annotations(in map[string]string) map[string]string {
	var out map[string]string
	for k, v := range in {
		domain, _, _ := strings.Cut(k, "/")
		if domain != "istio.io" && !strings.HasSuffix(domain, ".istio.io") && domain != "weft.dev" && !strings.HasSuffix(domain, ".weft.dev") {
			continue
		}
		if out == nil {
			out = make(map[string]string)
		}
		out[s.words.one(k)] = s.words.one(v)
	}
	return out
}

// interner makes equal strings the same one: the labels and annotations of a workload's pods are alike.
// It is safe for concurrent use.
type interner struct {
	mu    sync.Mutex
	words map[string]string
}

const (
	internLength = 1 << 10 // longer texts are hardly ever equal
	internWords  = 1 << 15 // then it starts anew: what is forgotten is only not shared any more
)

func (i *interner) one(s string) string {
	if s == "" || len(s) > internLength {
		return s
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if known, ok := i.words[s]; ok {
		return known
	}
	if i.words == nil || len(i.words) >= internWords {
		i.words = make(map[string]string)
	}
	i.words[s] = s
	return s
}

func (i *interner) all(in map[string]string) map[string]string {
	if in == nil {
		return nil
	}
	out := make(map[string]string, len(in))
	for k, v := range in {
		out[i.one(k)] = i.one(v)
	}
	return out
}
