package mesh

import (
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// servicesOfEntry converts a ServiceEntry: every host is a service of its own (Istio API: ServiceEntry).
func servicesOfEntry(spec *networking.ServiceEntry, meta Meta, clusterDomain string) ([]*Service, []Problem) {
	var problems []Problem
	problem := func(field, format string, args ...any) {
		problems = append(problems, Problem{meta.Ref, field, fmt.Sprintf(format, args...)})
	}
	var addresses []netip.Addr
	for i, a := range spec.Addresses {
		if addr, err := netip.ParseAddr(a); err == nil {
			addresses = append(addresses, addr.Unmap())
		} else if p, err := netip.ParsePrefix(a); err == nil && p.IsSingleIP() {
			addresses = append(addresses, p.Addr().Unmap())
		} else {
			problem(fmt.Sprintf("spec.addresses[%d]", i), "%s has no effect: only single addresses are supported", a)
		}
	}
	var ports []Port
	for _, p := range spec.Ports {
		proto := ParseProtocol(p.Protocol)
		if proto == ProtocolUDP {
			continue
		}
		target := p.TargetPort
		if target == 0 {
			target = p.Number
		}
		ports = append(ports, Port{Name: p.Name, Number: uint16(p.Number), TargetPort: uint16(target), Protocol: proto})
	}
	slices.SortStableFunc(ports, func(a, b Port) int { return int(a.Number) - int(b.Number) })
	var out []*Service
	for i, h := range spec.Hosts {
		if slices.Contains(spec.Hosts[:i], h) {
			continue
		}
		s := &Service{
			Meta:      meta,
			Host:      ResolveHost(h, meta.Namespace, clusterDomain),
			Addresses: addresses,
			Ports:     ports,
			ExportTo:  spec.ExportTo,
			External:  spec.Location == networking.ServiceEntry_MESH_EXTERNAL,
			entry:     spec,
		}
		if sel := spec.WorkloadSelector.GetLabels(); len(sel) > 0 {
			s.Selector = sel
		}
		switch spec.Resolution {
		case networking.ServiceEntry_STATIC:
			s.Resolution = ResolutionEndpoints
		case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
			s.Resolution, s.ExternalName = ResolutionDNS, s.Host
			if len(spec.Endpoints) > 0 {
				s.ExternalName = spec.Endpoints[0].Address
			}
			if len(spec.Endpoints) > 1 {
				problem("spec.endpoints", "only the first endpoint of a service entry with resolution %s is used", spec.Resolution)
			}
		default:
			s.Resolution = ResolutionHeadless
		}
		s.id = serviceID(s.Host, s.Namespace, s.Kind, s.Name)
		out = append(out, s)
	}
	return out, problems
}

// entryEndpoints are the endpoints that a ServiceEntry lists, or the workloads that it selects.
func entryEndpoints(svc *Service, p Port, selected []*Workload) []Endpoint {
	if svc.Resolution == ResolutionDNS {
		return nil
	}
	var out []Endpoint
	for _, e := range svc.entry.Endpoints {
		addr, err := netip.ParseAddr(e.Address)
		if err != nil {
			continue // a name or a UNIX socket
		}
		port := p.TargetPort
		if own, ok := e.Ports[p.Name]; ok {
			port = uint16(own)
		}
		ep := Endpoint{Address: addr.Unmap(), Port: port, Ready: true, Labels: e.Labels, Locality: parseLocality(e.Locality), Weight: e.Weight}
		if e.Labels[tlsModeLabel] == "istio" || e.ServiceAccount != "" {
			ep.Workload = &Workload{
				Meta:           Meta{Ref: svc.Ref, Labels: e.Labels},
				Addresses:      []netip.Addr{ep.Address},
				ServiceAccount: e.ServiceAccount,
				Locality:       ep.Locality,
				Injected:       e.Labels[tlsModeLabel] == "istio",
			}
		}
		out = append(out, ep)
	}
	for _, w := range selected {
		for _, a := range w.Addresses {
			out = append(out, Endpoint{Address: a, Port: p.TargetPort, Ready: !w.Terminating, Workload: w, Labels: w.Labels, Locality: w.Locality})
		}
	}
	return out
}

// selectedWorkloads are those of the namespace that a ServiceEntry's workloadSelector matches.
func selectedWorkloads(svc *Service, workloads *table[Workload]) []*Workload {
	if len(svc.Selector) == 0 || svc.Resolution != ResolutionEndpoints {
		return nil
	}
	var out []*Workload
	for _, w := range workloads.prefix(svc.Namespace + "/") {
		if SelectorMatches(svc.Selector, w.Labels) {
			out = append(out, w)
		}
	}
	return out
}

func sameEntry(a, b *networking.ServiceEntry) bool {
	return a == b || a != nil && b != nil && proto.Equal(a, b)
}
