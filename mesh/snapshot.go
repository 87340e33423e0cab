package mesh

import (
	"iter"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

// Snapshot is the mesh at one moment. It is immutable and safe for concurrent
// use; two successive snapshots share everything that did not change, so that
// pointer equality of what they return means "unchanged".
type Snapshot struct {
	// contract: see the methods below; the fields belong to this package
	_ struct{}
}

// Version increases by one with each snapshot of one Store.
func (s *Snapshot) Version() uint64

// Mesh returns the MeshConfig, with Istio's defaults filled in.
func (s *Snapshot) Mesh() *meshconfig.MeshConfig

// RootNamespace is where mesh-wide policy lives: "istio-system".
func (s *Snapshot) RootNamespace() string

// ClusterDomain is the DNS suffix of services: "cluster.local".
func (s *Snapshot) ClusterDomain() string

// TrustDomain is the authority part of SPIFFE identities: "cluster.local".
func (s *Snapshot) TrustDomain() string

// Namespace returns nil when the namespace is unknown.
func (s *Snapshot) Namespace(name string) *Namespace

// Service returns the service with this FQDN that a client in namespace sees (exportTo), or nil.
func (s *Snapshot) Service(clientNamespace, host string) *Service

// Services yields every service that a client in namespace sees, sorted by Host.
func (s *Snapshot) Services(clientNamespace string) iter.Seq[*Service]

// Endpoints returns the endpoints of one port of a service, sorted by address.
// The slice is shared: the same pointer in two snapshots means unchanged.
func (s *Snapshot) Endpoints(svc *Service, port Port) []*Endpoint

// Workload returns a pod by namespace and name, or nil.
func (s *Snapshot) Workload(namespace, name string) *Workload

// Targets returns the workload's ports that services send to, sorted by Port.
func (s *Snapshot) Targets(w *Workload) []Target

// VirtualServices yields those that apply in a gateway ("mesh" for sidecars,
// "namespace/name" for a Gateway) and that a client in namespace sees, in order of
// precedence (oldest first, then namespace and name).
func (s *Snapshot) VirtualServices(clientNamespace, gateway string) []*VirtualService

// DestinationRule returns the rule that a client in namespace applies to host:
// client's namespace first, then the service's, then the root namespace; the most specific
// host wins inside each (Istio: "DestinationRule lookup"). Several rules for one host
// in one namespace are merged (subsets added, the oldest trafficPolicy wins). Nil when none.
func (s *Snapshot) DestinationRule(clientNamespace string, svc *Service) *DestinationRule

// Gateways returns the Gateway resources whose selector matches the workload, oldest first.
func (s *Snapshot) Gateways(w *Workload) []*Gateway

// ServerMTLS returns the effective PeerAuthentication mode for one port of a workload:
// port level, workload, namespace, mesh; UNSET inherits. refs are the objects that decided.
func (s *Snapshot) ServerMTLS(w *Workload, port uint16) (mode MTLSMode, refs []Ref)
