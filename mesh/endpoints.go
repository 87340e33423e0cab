package mesh

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// slice is the lean form of an EndpointSlice.
type slice struct {
	key     string // "namespace/name"
	service string // "namespace/name" of its Service
	ports   []slicePort
	members []sliceMember
}

type slicePort struct {
	name   string
	number uint16
}

type sliceMember struct {
	addresses []netip.Addr
	ready     bool
	draining  bool   // serving while terminating
	pod       string // "namespace/name"; empty when the slice was made by hand
	node      string
	zone      string
	hostname  string
}

// sliceOf converts an EndpointSlice; nil when it belongs to no Service or lists host names.
func sliceOf(in *discoveryv1.EndpointSlice) *slice {
	service := in.Labels[discoveryv1.LabelServiceName]
	if service == "" || in.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	s := &slice{key: in.Namespace + "/" + in.Name, service: in.Namespace + "/" + service}
	for _, p := range in.Ports {
		if p.Port == nil || p.Protocol != nil && *p.Protocol != "TCP" {
			continue
		}
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		s.ports = append(s.ports, slicePort{name, uint16(*p.Port)})
	}
	yes := func(b *bool, otherwise bool) bool {
		if b == nil {
			return otherwise
		}
		return *b
	}
	for _, e := range in.Endpoints {
		m := sliceMember{ready: yes(e.Conditions.Ready, true)}
		m.draining = yes(e.Conditions.Terminating, false) && yes(e.Conditions.Serving, m.ready)
		for _, a := range e.Addresses {
			if addr, err := netip.ParseAddr(a); err == nil {
				m.addresses = append(m.addresses, addr.Unmap())
			}
		}
		if t := e.TargetRef; t != nil && t.Kind == "Pod" {
			ns := t.Namespace
			if ns == "" {
				ns = in.Namespace
			}
			m.pod = ns + "/" + t.Name
		}
		if e.NodeName != nil {
			m.node = *e.NodeName
		}
		if e.Zone != nil {
			m.zone = *e.Zone
		}
		if e.Hostname != nil {
			m.hostname = *e.Hostname
		}
		s.members = append(s.members, m)
	}
	return s
}

func (s *slice) equal(o *slice) bool {
	return o != nil && s.service == o.service && slices.Equal(s.ports, o.ports) &&
		slices.EqualFunc(s.members, o.members, func(a, b sliceMember) bool {
			return a.ready == b.ready && a.draining == b.draining && a.pod == b.pod && a.node == b.node &&
				a.zone == b.zone && a.hostname == b.hostname && slices.Equal(a.addresses, b.addresses)
		})
}

// serviceEndpoints are the endpoints of one service, for each of its ports.
type serviceEndpoints struct {
	ports []portEndpoints // sorted by number
}

type portEndpoints struct {
	number uint16
	list   []*Endpoint
}

// ready counts the endpoints of all ports that get traffic.
func (e *serviceEndpoints) ready() (n int) {
	if e != nil {
		for i := range e.ports {
			for _, one := range e.ports[i].list {
				if one.Ready {
					n++
				}
			}
		}
	}
	return n
}

func (e *serviceEndpoints) port(number uint16) []*Endpoint {
	if e == nil {
		return nil
	}
	for i := range e.ports {
		if e.ports[i].number == number {
			return e.ports[i].list
		}
	}
	return nil
}

// resolver finds what is known about an address.
type resolver struct {
	workload func(pod string, addr netip.Addr) *Workload
	node     func(name string) Locality
}

// endpointsOf collects the endpoints of each port of a service. Whatever comes out as before is taken from
// prev, down to the single endpoint, so that equal pointers mean unchanged.
func endpointsOf(svc *Service, prev *serviceEndpoints, collect func(Port) []Endpoint) *serviceEndpoints {
	next := &serviceEndpoints{ports: make([]portEndpoints, 0, len(svc.Ports))}
	same := prev != nil && len(prev.ports) == len(svc.Ports)
	for i, p := range svc.Ports {
		old := prev.port(p.Number)
		eps := reuse(inOrder(collect(p)), old)
		if !same || prev.ports[i].number != p.Number || !sameSlice(prev.ports[i].list, eps) {
			same = false
		}
		next.ports = append(next.ports, portEndpoints{p.Number, eps})
	}
	if same {
		return prev
	}
	return next
}

// sliceEndpoints collects the endpoints of one port from all slices of a Service. When nothing is ready, endpoints that still serve while they
// terminate get the traffic, as kube-proxy does (KEP-1669).
func sliceEndpoints(svc *Service, p Port, list []*slice, find resolver) []Endpoint {
	var out []Endpoint
	var draining []bool
	anyReady := false
	for _, s := range list {
		for _, sp := range s.ports {
			if sp.name != p.Name && !s.renamed(svc, p, sp) {
				continue
			}
			for i := range s.members {
				m := &s.members[i]
				for _, a := range m.addresses {
					e := Endpoint{Address: a, Port: sp.number, Ready: m.ready, Hostname: m.hostname}
					if e.Workload = find.workload(m.pod, a); e.Workload != nil {
						e.Labels, e.Locality = e.Workload.Labels, e.Workload.Locality
					} else {
						e.Locality = find.node(m.node)
						if m.zone != "" && e.Locality.Zone == "" {
							e.Locality.Zone = m.zone
						}
					}
					anyReady = anyReady || m.ready
					out, draining = append(out, e), append(draining, m.draining)
				}
			}
		}
	}
	if !anyReady {
		for i := range out {
			out[i].Ready = draining[i]
		}
	}
	return out
}

// renamed reports whether sp is what port p of the Service was or will be called. A port is known in slices by its name, and when it gets another
// one, Service and slices change one after the other: for that moment they belong together by the number that pods listen on.
func (s *slice) renamed(svc *Service, p Port, sp slicePort) bool {
	return len(svc.Selector) > 0 && p.TargetPort != 0 && sp.number == p.TargetPort &&
		!slices.ContainsFunc(svc.Ports, func(other Port) bool { return other.Name == sp.name }) &&
		!slices.ContainsFunc(s.ports, func(other slicePort) bool { return other.name == p.Name })
}

// inOrder sorts endpoints. The same address may be in two slices while one is being split; the first counts.
func inOrder(out []Endpoint) []Endpoint {
	slices.SortStableFunc(out, func(a, b Endpoint) int {
		if c := a.Address.Compare(b.Address); c != 0 {
			return c
		}
		return int(a.Port) - int(b.Port)
	})
	return slices.CompactFunc(out, func(a, b Endpoint) bool { return a.Address == b.Address && a.Port == b.Port })
}

// reuse returns old when it says the same as eps, and otherwise a list that shares its unchanged members.
func reuse(eps []Endpoint, old []*Endpoint) []*Endpoint {
	if len(eps) == 0 {
		return nil
	}
	out := make([]*Endpoint, len(eps))
	same := len(eps) == len(old)
	j := 0
	for i := range eps {
		e := &eps[i]
		for j < len(old) && old[j].Address.Less(e.Address) {
			j++
		}
		for k := j; k < len(old) && old[k].Address == e.Address; k++ {
			if old[k].equal(e) {
				out[i] = old[k]
			}
		}
		if out[i] == nil {
			c := *e // not &eps[i]: one kept endpoint must not keep the whole array
			out[i] = &c
		}
		same = same && out[i] == old[i]
	}
	if same {
		return old
	}
	return out
}

func (e *Endpoint) equal(o *Endpoint) bool {
	return e.Address == o.Address && e.Port == o.Port && e.Ready == o.Ready && e.Hostname == o.Hostname &&
		sameWorkload(e.Workload, o.Workload) && e.Locality == o.Locality && e.Weight == o.Weight && maps.Equal(e.Labels, o.Labels)
}

// sameWorkload compares pods by pointer, and those that stand for an address in a ServiceEntry by what they say.
func sameWorkload(a, b *Workload) bool {
	return a == b || a != nil && b != nil && a.Kind == "ServiceEntry" && a.equal(b)
}

// sameSlice reports whether two slices are the same memory.
func sameSlice[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// splitKey takes "namespace/name" apart.
func splitKey(key string) (namespace, name string) {
	namespace, name, _ = strings.Cut(key, "/")
	return namespace, name
}
