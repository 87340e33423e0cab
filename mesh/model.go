package mesh

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
)

// Ref names one object a user wrote, and where. Every piece of Envoy
// configuration carries the Refs that caused it, so that a rejected or
// surprising resource can be traced back to its YAML.
type Ref struct {
	Kind      string // "VirtualService", "Service", ...
	Namespace string // empty for cluster-scoped kinds
	Name      string
	File      string // where it was read from; empty when it came from an API server
	Line      int    // 1-based line of the document in File; 0 when unknown
}

// String gives "VirtualService default/reviews (bookinfo.yaml:12)".
func (r Ref) String() string {
	var b strings.Builder
	b.WriteString(r.Kind)
	b.WriteByte(' ')
	if r.Namespace != "" {
		b.WriteString(r.Namespace)
		b.WriteByte('/')
	}
	b.WriteString(r.Name)
	if r.File != "" {
		b.WriteString(" (")
		b.WriteString(r.File)
		if r.Line > 0 {
			b.WriteByte(':')
			b.WriteString(strconv.Itoa(r.Line))
		}
		b.WriteByte(')')
	}
	return b.String()
}

// Meta is the part of an object's metadata that configuration depends on.
type Meta struct {
	Ref
	UID         string
	Labels      map[string]string
	Annotations map[string]string
	Created     time.Time // precedence between conflicting objects: the oldest wins, then namespace and name
}

// Protocol is what is spoken on a port, as the port's name prefix or
// appProtocol declares it (Istio: "Explicit protocol selection").
type Protocol string

const (
	ProtocolAuto  Protocol = ""      // not declared: Envoy sniffs
	ProtocolHTTP  Protocol = "HTTP"  // HTTP/1.x, upgraded requests included
	ProtocolHTTP2 Protocol = "HTTP2" //
	ProtocolGRPC  Protocol = "GRPC"  // also GRPC-WEB
	ProtocolHTTPS Protocol = "HTTPS" // opaque TLS, routed by SNI
	ProtocolTLS   Protocol = "TLS"   // opaque TLS, routed by SNI
	ProtocolTCP   Protocol = "TCP"   // also MONGO, REDIS, MYSQL, tcp: opaque bytes
	ProtocolUDP   Protocol = "UDP"   // never captured, never configured
)

// IsHTTP reports whether requests on the port are routed at L7 without sniffing.
func (p Protocol) IsHTTP() bool {
	return p == ProtocolHTTP || p == ProtocolHTTP2 || p == ProtocolGRPC
}

// IsHTTP2 reports whether the port is declared to speak HTTP/2.
func (p Protocol) IsHTTP2() bool { return p == ProtocolHTTP2 || p == ProtocolGRPC }

// Port is one port of a Service.
type Port struct {
	Name       string
	Number     uint16 // the Service's port
	TargetPort uint16 // a number, when the Service gives one; 0 when TargetName is set
	TargetName string // a named container port
	Protocol   Protocol
}

// Resolution is how a client finds the addresses behind a host.
type Resolution uint8

const (
	// ResolutionEndpoints: the mesh knows the endpoints (ClusterIP services, STATIC service entries).
	ResolutionEndpoints Resolution = iota
	// ResolutionHeadless: clients dial endpoints themselves (headless services, NONE service entries).
	ResolutionHeadless
	// ResolutionDNS: Envoy resolves the host (ExternalName services, DNS service entries).
	ResolutionDNS
)

// Service is one host of the mesh: a Kubernetes Service, or one host of a ServiceEntry.
type Service struct {
	Meta
	Host         string       // FQDN: "reviews.default.svc.cluster.local"
	Addresses    []netip.Addr // ClusterIPs; none for headless
	Ports        []Port       // sorted by Number; UDP ports are not here
	Resolution   Resolution
	ExternalName string            // ResolutionDNS: what to resolve
	Selector     map[string]string // of pods; nil when endpoints are made by hand
	ExportTo     []string          // namespaces that may see it: nil or "*" = all, "." = its own
	External     bool              // not part of the mesh: no mesh TLS to it

	id    string                   // see serviceID
	entry *networking.ServiceEntry // what it was made of; nil for a Kubernetes Service
}

// Port returns the Service's port with this number.
func (s *Service) Port(number uint16) (Port, bool) {
	for _, p := range s.Ports {
		if p.Number == number {
			return p, true
		}
	}
	return Port{}, false
}

// Locality is where a workload runs, from its node's topology labels or the pod's istio-locality label.
type Locality struct{ Region, Zone, SubZone string }

// Endpoint is one address that serves one port of one host.
type Endpoint struct {
	Address  netip.Addr
	Port     uint16
	Ready    bool              // receives traffic. Endpoints that are not ready are kept out of load balancing
	Hostname string            // StatefulSet pods: "web-0"
	Workload *Workload         // the pod behind it; nil for addresses the mesh knows nothing about
	Labels   map[string]string // decide subset membership; the workload's labels
	Locality Locality
	Weight   uint32 // 0 means 1
}

// MeshTLS reports whether the endpoint's side terminates mesh mTLS (it has a sidecar).
// Whether it is *wanted* is the business of Snapshot.ServerMTLS.
func (e *Endpoint) MeshTLS() bool { return e.Workload != nil && e.Workload.Injected }

// Workload is a pod (or, later, a WorkloadEntry).
type Workload struct {
	Meta
	Addresses      []netip.Addr
	ServiceAccount string
	Node           string
	Locality       Locality
	Injected       bool // carries a weft sidecar (annotation sidecar.istio.io/status)
	HostNetwork    bool
	Terminating    bool
	ContainerPorts map[string]uint16 // by name, for Services that target a named port
	Owner          string            // name of the controller a user thinks of: "reviews-v1"
	OwnerKind      string            // "Deployment", "StatefulSet", "Job", ...

	discovery Discovery // what the pod itself says, or empty
}

// Target is one port of a workload that at least one Service sends to.
type Target struct {
	Port         uint16 // on the pod
	Protocol     Protocol
	Services     []*Service // sorted by Host; the oldest decides the protocol when they disagree
	ServicePorts []Port     // the port of Services[i] that leads here
}

// Namespace carries the labels that decide on injection and visibility.
type Namespace struct {
	Meta
}

// The configuration kinds. Spec is never modified after it entered a Snapshot.
type (
	VirtualService struct {
		Meta
		Spec   *networking.VirtualService
		Merged []Ref // the delegates whose routes are part of Spec

		parts []*VirtualService // what Spec was merged from
	}
	DestinationRule struct {
		Meta
		Spec   *networking.DestinationRule
		Merged []Ref // further rules for the same host that are part of Spec

		parts []*DestinationRule // what Spec was merged from
	}
	Gateway struct {
		Meta
		Spec *networking.Gateway
	}
	PeerAuthentication struct {
		Meta
		Spec *security.PeerAuthentication
	}
	// Config is an object of any other mesh kind: AuthorizationPolicy, RequestAuthentication,
	// Sidecar, EnvoyFilter, Telemetry, WasmPlugin, TrafficExtension, WorkloadEntry, WorkloadGroup, ServiceEntry, ProxyConfig.
	Config struct {
		Meta
		Spec proto.Message
	}
)

// MTLSMode is an effective PeerAuthentication mode: never "unset".
type MTLSMode uint8

const (
	MTLSPermissive MTLSMode = iota // both plaintext and mesh TLS are taken (Istio's default)
	MTLSStrict
	MTLSDisable
)

// Problem is a part of the configuration that has no effect, or not the one that was written.
type Problem struct {
	Ref     Ref
	Field   string // "data.mesh", "spec.http[2]"
	Message string // what is wrong and what to do
}

// String gives "ConfigMap istio-system/istio (mesh.yaml:3): data.mesh: ...".
func (p Problem) String() string {
	if p.Field == "" {
		return p.Ref.String() + ": " + p.Message
	}
	return p.Ref.String() + ": " + p.Field + ": " + p.Message
}
