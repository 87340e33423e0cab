package mesh

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// kindOf is the kind of an object. That of a typed one is its type's name, also when its TypeMeta is empty, as
// client-go leaves it; kinds that no one here knows carry their group, so that they are nobody's namesakes.
func kindOf(o runtime.Object) string {
	if u, ok := o.(runtime.Unstructured); ok {
		gvk := u.GetObjectKind().GroupVersionKind()
		return gvk.Kind + "." + gvk.Group
	}
	return reflect.TypeOf(o).Elem().Name()
}

// SpecOf returns the spec of a mesh kind in any of its versions, or nil. In Istio's API all versions of
// a kind have the same spec type; what differs is the object around it.
func SpecOf(o runtime.Object) proto.Message {
	v := reflect.ValueOf(o)
	if v.Kind() != reflect.Pointer || v.IsNil() || !strings.HasPrefix(v.Type().Elem().PkgPath(), "istio.io/client-go/") {
		return nil
	}
	field := v.Elem().FieldByName("Spec")
	if !field.IsValid() {
		return nil
	}
	spec, _ := field.Addr().Interface().(proto.Message)
	return spec
}

// apply takes in one object; s.mu is held.
func (s *Store) apply(in Object) error {
	o, ok := in.Object.(metav1.Object)
	if !ok {
		return fmt.Errorf("%T has no metadata", in.Object)
	}
	meta := metaOf(o, kindOf(in.Object), in.File, in.Line)
	key := Key{meta.Kind, meta.Namespace, meta.Name}
	p := &s.pending
	switch o := in.Object.(type) {
	case *corev1.Namespace:
		setConfig(s, key, p.namespaces, s.current.namespaces, o.Name, &Namespace{meta})
		s.report(key, discoveryProblems(&meta))
	case *corev1.Node:
		s.setNode(key, o.Name, nodeLocality(o.Labels))
		s.hosts[o.Name] = NodeOf(o)
	case *corev1.Service:
		svc := serviceOf(o, meta, s.opts.ClusterDomain)
		s.setServices(key, []*Service{svc})
	case *corev1.Pod:
		s.setWorkload(key, workloadOf(o, meta, s.nodes))
		s.report(key, discoveryProblems(&meta))
	case *discoveryv1.EndpointSlice:
		s.setSlice(key, sliceOf(o))
	case *corev1.ConfigMap:
		if o.Namespace == s.opts.RootNamespace && o.Name == s.opts.MeshConfigMap {
			return s.setMesh(key, meta.Ref, o.Data["mesh"])
		}
	case *corev1.Secret:
		s.setCredential(key, credentialOf(o, meta.Ref))
	default:
		if spec := SpecOf(in.Object); spec != nil {
			s.setSpec(key, meta, spec)
		}
	}
	return nil
}

// remove takes out one object; s.mu is held.
func (s *Store) remove(key Key) {
	p, name := &s.pending, key.Namespace+"/"+key.Name
	switch key.Kind {
	case "Namespace":
		setConfig(s, key, p.namespaces, s.current.namespaces, key.Name, nil)
	case "Node":
		s.setNode(key, key.Name, Locality{})
		delete(s.nodes, key.Name)
		delete(s.hosts, key.Name)
	case "Service":
		s.setServices(key, nil)
	case "Pod":
		s.setWorkload(key, nil)
	case "EndpointSlice":
		s.setSlice(key, nil)
	case "ConfigMap":
		if key.Namespace == s.opts.RootNamespace && key.Name == s.opts.MeshConfigMap {
			_ = s.setMesh(key, Ref{}, "")
		}
	case "Secret":
		s.setCredential(key, nil)
	case "VirtualService":
		setConfig(s, key, p.virtualServices, s.current.virtualServiceTable, name, nil)
	case "DestinationRule":
		setConfig(s, key, p.destinationRules, s.current.destinationRuleTable, name, nil)
	case "Gateway":
		setConfig(s, key, p.gateways, s.current.gatewayTable, name, nil)
		s.demandOf(name, nil)
	case "PeerAuthentication":
		setConfig(s, key, p.peerAuthentications, s.current.peerAuthenticationTable, name, nil)
	default:
		setConfig(s, key, p.configs, s.current.configs, key.Kind+"/"+name, nil)
		if key.Kind == "ServiceEntry" {
			s.setServices(key, nil)
		}
	}
	s.complain(key, nil)
	if s.problems[key] != nil {
		s.report(key, nil)
	}
}

// setSpec takes in a mesh kind.
func (s *Store) setSpec(key Key, meta Meta, spec proto.Message) {
	p, name := &s.pending, key.Namespace+"/"+key.Name
	switch spec := spec.(type) {
	case *networking.VirtualService:
		spec = normalizeVirtualService(spec, meta.Namespace, s.opts.ClusterDomain)
		setConfig(s, key, p.virtualServices, s.current.virtualServiceTable, name, &VirtualService{Meta: meta, Spec: spec})
	case *networking.DestinationRule:
		if host := ResolveHost(spec.Host, meta.Namespace, s.opts.ClusterDomain); host != spec.Host {
			spec = proto.Clone(spec).(*networking.DestinationRule)
			spec.Host = host
		}
		setConfig(s, key, p.destinationRules, s.current.destinationRuleTable, name, &DestinationRule{Meta: meta, Spec: spec})
		var problems []Problem
		if len(spec.GetWorkloadSelector().GetMatchLabels()) > 0 {
			problems = []Problem{{meta.Ref, "spec.workloadSelector", "not supported yet: this rule has no effect"}}
		}
		s.report(key, problems)
	case *networking.Gateway:
		setConfig(s, key, p.gateways, s.current.gatewayTable, name, &Gateway{Meta: meta, Spec: spec})
		s.demandOf(name, spec)
	case *security.PeerAuthentication:
		setConfig(s, key, p.peerAuthentications, s.current.peerAuthenticationTable, name, &PeerAuthentication{Meta: meta, Spec: spec})
	case *networking.ServiceEntry:
		setConfig(s, key, p.configs, s.current.configs, key.Kind+"/"+name, &Config{Meta: meta, Spec: spec})
		services, problems := servicesOfEntry(spec, meta, s.opts.ClusterDomain)
		s.setServices(key, services)
		s.report(key, problems)
	default:
		setConfig(s, key, p.configs, s.current.configs, key.Kind+"/"+name, &Config{Meta: meta, Spec: spec})
	}
}

// setConfig notes a change that waits for the debounce; an object that says the same as
// before is not a change.
func setConfig[T any](s *Store, key Key, pending map[string]*T, t *table[T], name string, v *T) {
	old := latest(pending, t, name)
	if old == nil && v == nil || old != nil && v != nil && sameConfig(old, v) {
		return
	}
	pending[name] = v
	s.changedConfig(key)
}

// sameConfig compares two objects of one kind.
func sameConfig[T any](a, b *T) bool {
	switch a := any(a).(type) {
	case *Namespace:
		return a.Meta.equal(&any(b).(*Namespace).Meta)
	case *Service:
		return a.equal(any(b).(*Service))
	case *VirtualService:
		b := any(b).(*VirtualService)
		return a.Meta.equal(&b.Meta) && proto.Equal(a.Spec, b.Spec)
	case *DestinationRule:
		b := any(b).(*DestinationRule)
		return a.Meta.equal(&b.Meta) && proto.Equal(a.Spec, b.Spec)
	case *Gateway:
		b := any(b).(*Gateway)
		return a.Meta.equal(&b.Meta) && proto.Equal(a.Spec, b.Spec)
	case *PeerAuthentication:
		b := any(b).(*PeerAuthentication)
		return a.Meta.equal(&b.Meta) && proto.Equal(a.Spec, b.Spec)
	case *Credential:
		return a.equal(any(b).(*Credential))
	case *Config:
		b := any(b).(*Config)
		return a.Meta.equal(&b.Meta) && proto.Equal(a.Spec, b.Spec)
	}
	return false
}

func (m *Meta) equal(o *Meta) bool {
	return m.Ref == o.Ref && m.UID == o.UID && m.Created.Equal(o.Created) && maps.Equal(m.Labels, o.Labels) && maps.Equal(m.Annotations, o.Annotations)
}

func (s *Service) equal(o *Service) bool {
	return s.Meta.equal(&o.Meta) && s.id == o.id && s.Host == o.Host && s.Resolution == o.Resolution && s.ExternalName == o.ExternalName &&
		s.External == o.External && slices.Equal(s.Addresses, o.Addresses) && slices.Equal(s.Ports, o.Ports) &&
		maps.Equal(s.Selector, o.Selector) && slices.Equal(s.ExportTo, o.ExportTo) && sameEntry(s.entry, o.entry)
}

func (w *Workload) equal(o *Workload) bool {
	return w.Meta.equal(&o.Meta) && w.ServiceAccount == o.ServiceAccount && w.Node == o.Node && w.Locality == o.Locality &&
		w.Injected == o.Injected && w.HostNetwork == o.HostNetwork && w.Terminating == o.Terminating && w.Owner == o.Owner &&
		w.OwnerKind == o.OwnerKind && slices.Equal(w.Addresses, o.Addresses) && maps.Equal(w.ContainerPorts, o.ContainerPorts)
}

// setServices replaces the services that one object stands for.
func (s *Store) setServices(key Key, services []*Service) {
	old := s.serviceIDs[key]
	for _, id := range old {
		if svc := latest(s.pending.services, s.current.services.all, id); svc != nil && svc.entry != nil && len(svc.Selector) > 0 {
			s.selectingEntries.drop(svc.Namespace, id)
		}
	}
	var ids []string
	for _, svc := range services {
		if svc.entry != nil && len(svc.Selector) > 0 {
			s.selectingEntries.add(svc.Namespace, svc.id)
		}
		ids = append(ids, svc.id)
		setConfig(s, key, s.pending.services, s.current.services.all, svc.id, svc)
	}
	for _, id := range old {
		if !slices.Contains(ids, id) {
			setConfig(s, key, s.pending.services, s.current.services.all, id, nil)
		}
	}
	if ids == nil {
		delete(s.serviceIDs, key)
	} else {
		s.serviceIDs[key] = ids
	}
}

// setNode takes in a node's locality, which is that of its pods.
func (s *Store) setNode(key Key, name string, l Locality) {
	if s.nodes[name] == l {
		return
	}
	s.nodes[name] = l
	s.pending.movedNodes[name] = struct{}{}
	s.changedEndpoints(key)
	for pod := range s.podsOnNode[name] {
		w := latest(s.pending.workloads, s.current.workloads, pod)
		if w == nil || w.Labels[localityLabel] != "" {
			continue
		}
		moved := *w
		moved.Locality = l
		s.setWorkload(Key{"Pod", w.Namespace, w.Name}, &moved)
	}
}

// setWorkload takes in a pod; nil removes it.
func (s *Store) setWorkload(key Key, w *Workload) {
	pod := key.Namespace + "/" + key.Name
	old := latest(s.pending.workloads, s.current.workloads, pod)
	if old == nil && w == nil || old != nil && w != nil && old.equal(w) {
		return
	}
	if old != nil {
		delete(s.podsOnNode[old.Node], pod)
		for _, a := range old.Addresses {
			if s.podByAddr[a] == pod {
				delete(s.podByAddr, a)
			}
			s.markServices(s.addrSvcs[a])
		}
	}
	if w != nil {
		if s.podsOnNode[w.Node] == nil {
			s.podsOnNode[w.Node] = map[string]struct{}{}
		}
		s.podsOnNode[w.Node][pod] = struct{}{}
		for _, a := range w.Addresses {
			if !w.HostNetwork {
				s.podByAddr[a] = pod
			}
			s.markServices(s.addrSvcs[a])
		}
	}
	s.markServices(s.podSvcs[pod])
	for id := range s.selectingEntries[key.Namespace] {
		if svc := latest(s.pending.services, s.current.services.all, id); svc != nil &&
			(old != nil && SelectorMatches(svc.Selector, old.Labels) || w != nil && SelectorMatches(svc.Selector, w.Labels)) {
			s.pending.staleEndpoints[id] = struct{}{}
		}
	}
	s.demandBy(old, w)
	s.pending.workloads[pod] = w
	s.pending.staleTargets[pod] = struct{}{}
	s.changedEndpoints(key)
}

func (s *Store) markServices(services map[string]int) {
	for svc := range services {
		s.markService(svc)
	}
}

// markService notes that the endpoints of a Kubernetes Service ("namespace/name") must be derived again.
func (s *Store) markService(svc string) {
	ns, name := splitKey(svc)
	s.pending.staleEndpoints[serviceID(name+"."+ns+".svc."+s.opts.ClusterDomain, ns, "Service", name)] = struct{}{}
}

// setSlice takes in an EndpointSlice; nil removes it.
func (s *Store) setSlice(key Key, next *slice) {
	name := key.Namespace + "/" + key.Name
	old := s.slices[name]
	if old == nil && next == nil || old != nil && old.equal(next) {
		return
	}
	if old != nil {
		delete(s.bySvc[old.service], name)
		if len(s.bySvc[old.service]) == 0 {
			delete(s.bySvc, old.service)
		}
		for _, m := range old.members {
			if m.pod != "" {
				s.podSvcs.drop(m.pod, old.service)
				continue
			}
			for _, a := range m.addresses {
				s.addrSvcs.drop(a, old.service)
			}
		}
		s.markService(old.service)
		delete(s.slices, name)
	}
	if next != nil {
		if s.bySvc[next.service] == nil {
			s.bySvc[next.service] = map[string]*slice{}
		}
		s.bySvc[next.service][name] = next
		for _, m := range next.members {
			if m.pod != "" {
				s.podSvcs.add(m.pod, next.service)
				continue
			}
			for _, a := range m.addresses {
				s.addrSvcs.add(a, next.service)
			}
		}
		s.markService(next.service)
		s.slices[name] = next
	}
	s.changedEndpoints(key)
}

// setMesh takes in the text of a MeshConfig; an empty one means the defaults. What cannot be read
// leaves the last good one in force.
func (s *Store) setMesh(key Key, ref Ref, text string) error {
	config, warnings, err := ParseMeshConfig(text)
	if err != nil {
		p := Problem{ref, "data.mesh", fmt.Sprintf("not a MeshConfig: %v; the last valid one stays in force", err)}
		s.report(key, []Problem{p})
		return fmt.Errorf("%s", p)
	}
	var problems []Problem
	for _, w := range warnings {
		problems = append(problems, Problem{ref, "data.mesh", w})
	}
	s.report(key, problems)
	def := DefaultMeshConfig()
	if config.RootNamespace == def.RootNamespace {
		config.RootNamespace = s.opts.RootNamespace
	}
	if config.TrustDomain == def.TrustDomain {
		config.TrustDomain = s.opts.TrustDomain
	}
	old := s.current.mesh
	if s.pending.mesh != nil {
		old = s.pending.mesh
	}
	if proto.Equal(old.config, config) && old.ref == ref {
		return nil
	}
	s.pending.mesh = &meshState{config, ref}
	s.changedConfig(key)
	return nil
}

// report replaces the problems of one object.
func (s *Store) report(key Key, problems []Problem) {
	if slices.Equal(s.problems[key], problems) {
		return
	}
	if len(problems) == 0 {
		delete(s.problems, key)
	} else {
		s.problems[key] = problems
	}
	s.pending.problems = true
	s.changedConfig(key)
}

// Complain replaces what the reader of an object says is wrong with it, beside what the store itself finds; deleting the object clears
// it. It shows in [Snapshot.Problems], and changes nothing else.
func (s *Store) Complain(key Key, problems ...Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.complain(key, problems)
	s.wake()
}

func (s *Store) complain(key Key, problems []Problem) {
	if slices.Equal(s.complaints[key], problems) {
		return
	}
	if len(problems) == 0 {
		delete(s.complaints, key)
	} else {
		s.complaints[key] = problems
	}
	s.pending.problems = true
	s.changedConfig(key)
}
