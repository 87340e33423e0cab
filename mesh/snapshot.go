package mesh

import (
	"iter"
	"slices"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

// Snapshot is the mesh at one moment. It is immutable and safe for concurrent
// use; two successive snapshots share everything that did not change, so that
// pointer equality of what they return means "unchanged".
type Snapshot struct {
	version       uint64
	clusterDomain string
	mesh          *meshState
	changes       ChangeSet
	problems      []Problem

	namespaces  *table[Namespace]        // by name
	services    *serviceIndex            //
	endpoints   *table[serviceEndpoints] // by serviceID
	workloads   *table[Workload]         // by "namespace/name"
	targets     *table[workloadTargets]  // by "namespace/name"
	configs     *table[Config]           // by "kind/namespace/name"
	credentials *table[Credential]

	virtualServiceTable     *table[VirtualService] // these four by "namespace/name"
	destinationRuleTable    *table[DestinationRule]
	gatewayTable            *table[Gateway]
	peerAuthenticationTable *table[PeerAuthentication]

	virtualServices     *virtualServiceIndex
	destinationRules    *destinationRuleIndex
	gateways            *gatewayIndex
	peerAuthentications *peerAuthenticationIndex
}

// Version increases by one with each snapshot of one Store.
func (s *Snapshot) Version() uint64 { return s.version }

// Changes is what differs from the snapshot before this one.
func (s *Snapshot) Changes() ChangeSet { return s.changes }

// Problems lists what the user wrote and the mesh cannot use, sorted by object.
func (s *Snapshot) Problems() []Problem { return s.problems }

// Mesh returns the MeshConfig, with Istio's defaults filled in.
func (s *Snapshot) Mesh() *meshconfig.MeshConfig { return s.mesh.config }

// RootNamespace is where mesh-wide policy lives: "istio-system".
func (s *Snapshot) RootNamespace() string { return s.mesh.config.RootNamespace }

// ClusterDomain is the DNS suffix of services: "cluster.local".
func (s *Snapshot) ClusterDomain() string { return s.clusterDomain }

// TrustDomain is the authority part of SPIFFE identities: "cluster.local".
func (s *Snapshot) TrustDomain() string { return s.mesh.config.TrustDomain }

// Namespace returns nil when the namespace is unknown.
func (s *Snapshot) Namespace(name string) *Namespace { return s.namespaces.get(name) }

// Namespaces yields all known namespaces, sorted by name.
func (s *Snapshot) Namespaces() iter.Seq[*Namespace] { return slices.Values(s.namespaces.values()) }

// Service returns the service with this FQDN that a client in namespace sees (exportTo), or nil.
// When several objects claim the host, a Kubernetes Service wins, then one of the client's namespace, then the oldest.
func (s *Snapshot) Service(clientNamespace, host string) *Service {
	return s.services.service(clientNamespace, host)
}

// Alias returns the service of the mesh that an ExternalName service names, as a client in namespace sees it, or nil.
// Istio treats such a service as another name of its target: what is sent to it goes the target's way.
func (s *Snapshot) Alias(clientNamespace string, svc *Service) *Service {
	if svc.Resolution != ResolutionDNS || svc.ExternalName == svc.Host {
		return nil
	}
	target := s.services.service(clientNamespace, svc.ExternalName)
	if target == nil || target.Resolution == ResolutionDNS {
		return nil
	}
	return target
}

// Services yields every service that a client in namespace sees, one per host, sorted by Host.
func (s *Snapshot) Services(clientNamespace string) iter.Seq[*Service] {
	return slices.Values(s.services.view(clientNamespace))
}

// VisibleServices is Services as a shared slice: the same first element's address and length in two
// snapshots mean that nothing in it changed.
func (s *Snapshot) VisibleServices(clientNamespace string) []*Service {
	return s.services.view(clientNamespace)
}

// Endpoints returns the endpoints of one port of a service, sorted by address.
// The slice is shared: the same pointer in two snapshots means unchanged.
func (s *Snapshot) Endpoints(svc *Service, port Port) []*Endpoint {
	return s.endpoints.get(svc.id).port(port.Number)
}

// Workload returns a pod by namespace and name, or nil.
func (s *Snapshot) Workload(namespace, name string) *Workload {
	return s.workloads.get(namespace + "/" + name)
}

// Workloads yields all pods, sorted by namespace and name.
func (s *Snapshot) Workloads() iter.Seq[*Workload] { return slices.Values(s.workloads.values()) }

// Targets returns the workload's ports that services send to, sorted by Port.
func (s *Snapshot) Targets(w *Workload) []Target {
	t := s.targets.get(w.Namespace + "/" + w.Name)
	if t == nil {
		return nil
	}
	return t.list
}

// VirtualServices yields those that apply in a gateway ("mesh" for sidecars,
// "namespace/name" for a Gateway) and that a client in namespace sees, in order of
// precedence (oldest first, then namespace and name).
//
// What a VirtualService says relative to its namespace is resolved already: hosts, destinations and
// mirrors are FQDNs, gateways (also those of matches) are "mesh" or "namespace/name", delegates are merged in.
func (s *Snapshot) VirtualServices(clientNamespace, gateway string) []*VirtualService {
	return s.virtualServices.view(clientNamespace, gateway).list
}

// VirtualServicesFor returns those of VirtualServices that decide about one host: all that name
// the most specific pattern covering it, in order of precedence. In the mesh Istio uses
// the first; at a gateway it appends the routes of the others.
func (s *Snapshot) VirtualServicesFor(clientNamespace, gateway, host string) []*VirtualService {
	return s.virtualServices.view(clientNamespace, gateway).forHost(host)
}

// DestinationRule returns the rule that a client in namespace applies to host:
// client's namespace first, then the service's, then the root namespace; the most specific
// host wins inside each (Istio: "DestinationRule lookup"). Several rules for one host
// in one namespace are merged (subsets added, the oldest trafficPolicy wins). Nil when none.
func (s *Snapshot) DestinationRule(clientNamespace string, svc *Service) *DestinationRule {
	return s.destinationRules.lookup(clientNamespace, svc.Host, svc.Namespace)
}

// Gateways returns the Gateway resources whose selector matches the workload, oldest first.
func (s *Snapshot) Gateways(w *Workload) []*Gateway { return s.gateways.of(w.Labels) }

// Gateway returns one Gateway resource by namespace and name, or nil.
func (s *Snapshot) Gateway(namespace, name string) *Gateway {
	return s.gatewayTable.get(namespace + "/" + name)
}

// ServerMTLS returns the effective PeerAuthentication mode for one port of a workload:
// port level, workload, namespace, mesh; UNSET inherits. refs are the objects that decided.
// Port 0 asks for the mode of the ports that no portLevelMtls names.
func (s *Snapshot) ServerMTLS(w *Workload, port uint16) (mode MTLSMode, refs []Ref) {
	return s.peerAuthentications.server(w, port)
}

// MTLSPorts returns the ports for which the PeerAuthentication of the workload has a mode of its own (portLevelMtls), sorted.
// They may be ports that no Service names.
func (s *Snapshot) MTLSPorts(w *Workload) []uint16 { return s.peerAuthentications.ports(w) }

// UID of an object that a user configures the mesh with, or of a pod or namespace, as the API server gave it; empty when it is not here or came from a file.
func (s *Snapshot) UID(ref Ref) string {
	name := ref.Namespace + "/" + ref.Name
	var m *Meta
	switch ref.Kind {
	case "Namespace":
		if v := s.namespaces.get(ref.Name); v != nil {
			m = &v.Meta
		}
	case "Pod":
		if v := s.workloads.get(name); v != nil {
			m = &v.Meta
		}
	case "VirtualService":
		if v := s.virtualServiceTable.get(name); v != nil {
			m = &v.Meta
		}
	case "DestinationRule":
		if v := s.destinationRuleTable.get(name); v != nil {
			m = &v.Meta
		}
	case "Gateway":
		if v := s.gatewayTable.get(name); v != nil {
			m = &v.Meta
		}
	case "PeerAuthentication":
		if v := s.peerAuthenticationTable.get(name); v != nil {
			m = &v.Meta
		}
	default:
		if v := s.configs.get(ref.Kind + "/" + name); v != nil {
			m = &v.Meta
		}
	}
	if m == nil {
		return ""
	}
	return m.UID
}

// Count is the number of VirtualServices or DestinationRules, or of objects of a kind without an accessor of its own.
func (s *Snapshot) Count(kind string) int {
	switch kind {
	case "VirtualService":
		return s.virtualServiceTable.len()
	case "DestinationRule":
		return s.destinationRuleTable.len()
	}
	n := 0
	for range s.Configs(kind) {
		n++
	}
	return n
}

// Configs yields the objects of a kind that has no accessor of its own, sorted by namespace and name.
func (s *Snapshot) Configs(kind string) iter.Seq[*Config] {
	return func(yield func(*Config) bool) {
		for _, c := range s.configs.prefix(kind + "/") {
			if !yield(c) {
				return
			}
		}
	}
}
