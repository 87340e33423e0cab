package bootstrap

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"
)

// MaxSize is the longest bootstrap that can be handed over as one argument, in bytes (Linux: MAX_ARG_STRLEN, with its
// terminating zero).
const MaxSize = 128<<10 - 1

// The environment that the bootstrap refers to. The container must define each of them.
const (
	EnvPodName        = "POD_NAME"
	EnvPodNamespace   = "POD_NAMESPACE"
	EnvPodIP          = "POD_IP"
	EnvInstanceIPs    = "INSTANCE_IPS" // status.podIPs, with commas between them
	EnvServiceAccount = "SERVICE_ACCOUNT"
	EnvNodeName       = "ISTIO_META_NODE_NAME"
)

// Ports of the static listeners (Istio's numbers).
const (
	PortAdmin   = 15000 // on 127.0.0.1 only
	PortProbes  = 15020 // app probes, merged metrics
	PortHealth  = 15021
	PortMetrics = 15090
)

// HealthPath answers 200 once Envoy has received its configuration, on PortHealth and PortProbes.
const HealthPath = "/healthz/ready"

// MetricsPath is where Prometheus finds metrics, on PortMetrics and PortProbes.
const MetricsPath = "/stats/prometheus"

// Settings are the same for (nearly) all proxies of a mesh. The zero value of a field means the default that is named.
type Settings struct {
	// DiscoveryAddress is host:port of the control plane; "istiod.istio-system.svc:15012".
	DiscoveryAddress string
	// DiscoverySAN is the DNS name in the control plane's certificate; the host of DiscoveryAddress.
	DiscoverySAN string
	// ClusterDomain is the DNS suffix of services: "cluster.local".
	ClusterDomain string
	// TokenFile holds the pod's service account token: "/var/run/secrets/tokens/istio-token". Its directory is watched.
	TokenFile string
	// RootDocument is an SDS document with the control plane's root certificate under the name RootSecret:
	// "/var/run/secrets/istio/xds-root.yaml", "xds-ca". Its directory is watched.
	RootDocument string
	RootSecret   string
	// IPv4Only binds 0.0.0.0 instead of [::] with IPv4: for kernels that were booted without IPv6.
	IPv4Only bool
	// AdminPort and HealthPort replace PortAdmin and PortHealth (Istio API: ProxyConfig.proxyAdminPort, statusPort).
	AdminPort, HealthPort uint16
	// Stats are inclusions beside Istio's own (Istio API: ProxyConfig.proxyStatsMatcher).
	Stats StatsInclusion
	// RuntimeValues go into Envoy's static runtime layer (Istio API: ProxyConfig.runtimeValues).
	RuntimeValues map[string]string
	// StatsFlushInterval of Envoy; zero leaves Envoy's default of 5 s.
	StatsFlushInterval time.Duration
}

// StatsInclusion says which of Envoy's own statistics exist, beside those that Istio always keeps.
type StatsInclusion struct {
	Prefixes, Suffixes, Regexps []string
}

func (s *Settings) setDefaults() error {
	if s.DiscoveryAddress == "" {
		s.DiscoveryAddress = "istiod.istio-system.svc:15012"
	}
	host, _, err := splitHostPort(s.DiscoveryAddress)
	if err != nil {
		return fmt.Errorf("discoveryAddress %q: %w", s.DiscoveryAddress, err)
	}
	def := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	def(&s.DiscoverySAN, host)
	def(&s.ClusterDomain, "cluster.local")
	def(&s.TokenFile, "/var/run/secrets/tokens/istio-token")
	def(&s.RootDocument, "/var/run/secrets/istio/xds-root.yaml")
	def(&s.RootSecret, "xds-ca")
	if s.AdminPort == 0 {
		s.AdminPort = PortAdmin
	}
	if s.HealthPort == 0 {
		s.HealthPort = PortHealth
	}
	return nil
}

func splitHostPort(address string) (host string, port uint32, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return "", 0, errors.New("want host:port, such as istiod.istio-system.svc:15012")
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is not a port", text)
	}
	return host, uint32(n), nil
}

// Kind is what a proxy does; it is the first part of its node id.
type Kind string

const (
	Sidecar Kind = "sidecar"
	Router  Kind = "router" // a gateway
)

// Params are what one pod adds. No string of it is expanded by kubelet: a "$(X)" in it stays as it is.
type Params struct {
	Kind Kind
	// App is the name before the namespace in node.cluster: Istio's "app.namespace".
	App string
	// Metadata joins the node's metadata: strings, or raw JSON. Keys are Istio's (WORKLOAD_NAME, OWNER, ...).
	Metadata []Field
	// Probes are served on PortProbes.
	Probes []Probe
	// AppMetrics is merged with Envoy's own metrics on PortProbes; nil: Envoy's only.
	AppMetrics *AppMetrics
}

// Field is one entry of the node's metadata. Exactly one of Text and JSON is used: JSON when it is not empty.
type Field struct {
	Name string
	Text string
	JSON string
}

// AppMetrics is where the app answers Prometheus (Kubernetes convention: prometheus.io/port and /path).
type AppMetrics struct {
	Port uint16
	Path string
}

// Handler is how a probe asks the app.
type Handler uint8

const (
	HTTP Handler = iota
	HTTPS
	TCP
	GRPC
	H2C // HTTP/2 without TLS (Kubernetes: httpGet.protocol HTTP2)
)

// Probe is one probe (or HTTP lifecycle hook) of the app, which kubelet sends to http://podIP:15020Path instead.
type Probe struct {
	Path    string // on PortProbes: /app-health/<container>/readyz
	Handler Handler
	Port    uint16
	Target  string        // HTTP, HTTPS, H2C: path and query to ask for; GRPC: service name
	Timeout time.Duration // zero: none
}
