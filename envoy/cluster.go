package envoy

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	upstreamhttp "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

// Names of the clusters that are there whatever the mesh contains (Istio's names).
const (
	blackHoleCluster   = "BlackHoleCluster"
	passthroughCluster = "PassthroughCluster"
)

// clusterName is Istio's: "outbound|9080|v1|reviews.default.svc.cluster.local".
func clusterName(port uint16, subset, host string) string {
	return "outbound|" + strconv.Itoa(int(port)) + "|" + subset + "|" + host
}

// clusterSNI is the server name of mesh TLS to a cluster: "outbound_.9080_.v1_.reviews.default.svc.cluster.local".
func clusterSNI(port uint16, subset, host string) string {
	return "outbound_." + strconv.Itoa(int(port)) + "_." + subset + "_." + host
}

// A hostBuilder makes the bundle of one service, or its upstream.
type hostBuilder struct {
	*view
	svc       *mesh.Service
	rule      *mesh.DestinationRule // nil when none applies
	config    *meshconfig.MeshConfig
	routed    hostRoutes
	resources []*Resource
	out       *bundle
}

func buildUpstream(v *view, svc *mesh.Service) *upstream {
	h := &hostBuilder{view: v, svc: svc, config: v.mesh(), rule: v.rule(svc)}
	h.checkRule()
	if h.alias() == svc {
		for _, p := range svc.Ports {
			h.clusters(p)
		}
	}
	u := &upstream{rule: h.rule, resources: h.resources}
	u.remember(v)
	return u
}

// buildBundle takes the rule from up: the bundle is read again whenever that is.
func buildBundle(v *view, svc *mesh.Service, up *upstream) *bundle {
	h := &hostBuilder{view: v, svc: svc, config: v.mesh(), rule: up.rule, out: &bundle{svc: svc, upstream: up}}
	if !v.client.router {
		h.routed = v.routes(svc.Host)
		for _, p := range svc.Ports {
			h.listen(p)
		}
	}
	h.out.resources = slices.Concat(up.resources, h.resources)
	h.out.remember(v)
	h.out.uses |= up.uses
	h.out.problems = slices.Concat(up.problems, v.problems)
	return h.out
}

// alias is the service that an ExternalName stands for when that is in the mesh, and otherwise the service itself.
// (Istio: ENABLE_EXTERNAL_NAME_ALIAS.)
func (h *hostBuilder) alias() *mesh.Service { return h.view.alias(h.svc) }

func (v *view) alias(svc *mesh.Service) *mesh.Service {
	for range 4 { // a chain may be a loop
		if svc.Resolution != mesh.ResolutionDNS || svc.ExternalName == "" || svc.ExternalName == svc.Host {
			return svc
		}
		next := v.service(svc.ExternalName)
		if next == nil {
			return svc
		}
		svc = next
	}
	return svc
}

// refs are the objects behind the clusters of the host.
func (h *hostBuilder) refs() []mesh.Ref {
	refs := []mesh.Ref{h.svc.Ref}
	if h.rule != nil {
		refs = append(append(refs, h.rule.Ref), h.rule.Merged...)
	}
	return refs
}

func (h *hostBuilder) add(r *Resource) { h.resources = append(h.resources, r) }

// clusters adds the cluster of a port and those of the DestinationRule's subsets, each with its endpoints.
func (h *hostBuilder) clusters(p mesh.Port) {
	endpoints := h.endpoints(h.svc, p)
	modes := h.modes(endpoints)
	c := clusterBuilder{hostBuilder: h, port: p, endpoints: endpoints, modes: modes}
	c.build(nil)
	for _, s := range ruleSpec(h.rule).GetSubsets() {
		c.build(s)
	}
}

// A clusterBuilder makes the clusters of one port.
type clusterBuilder struct {
	*hostBuilder
	port      mesh.Port
	endpoints []*mesh.Endpoint
	modes     []mesh.MTLSMode // of the endpoints
}

func (c *clusterBuilder) build(subset *networking.Subset) {
	p := policyFor(ruleSpec(c.rule), subset, c.port.Number)
	m, more := c.cluster(p, subset)
	if err := c.refused(m); err != nil {
		// Envoy would refuse it, and with it perhaps the whole response.
		field := "spec.trafficPolicy"
		if subset != nil {
			field = "spec.subsets[" + subset.GetName() + "].trafficPolicy"
		}
		c.problem(c.rule.Ref, field, fmt.Sprintf("Envoy would refuse it: %v. Until it is corrected the policy is left out for %s", err, m.Name))
		p = policy{}
		m, more = c.cluster(p, subset)
	}
	c.add(rawResource(Cluster, m.Name, append(marshal(m), more...), c.refs()...))
	if m.GetType() == cluster.Cluster_EDS {
		c.add(rawResource(Endpoints, m.Name, c.assignment(m.Name, p, subset), c.refs()...))
	}
}

// refused says why Envoy would refuse a cluster for its rule. Without one all of it is ours.
func (c *clusterBuilder) refused(m *cluster.Cluster) error {
	if c.rule == nil {
		return nil
	}
	return invalid(m)
}

// Field numbers of cluster.v3.Cluster.
const (
	fieldClusterMetadata      = 25
	fieldClusterProtocol      = 36 // typed_extension_protocol_options
	fieldClusterSocketMatches = 43
)

// cluster is a message and more fields of it, in the wire format.
func (c *clusterBuilder) cluster(p policy, subset *networking.Subset) (*cluster.Cluster, []byte) {
	name := clusterName(c.port.Number, subset.GetName(), c.svc.Host)
	m := &cluster.Cluster{
		Name:                 name,
		ConnectTimeout:       connectTimeout(c.config),
		ClusterDiscoveryType: c.discovery(p),
	}
	switch m.GetType() {
	case cluster.Cluster_EDS:
		// Without a service_name the endpoints have the cluster's.
		m.EdsClusterConfig = endpointsFromADS
	case cluster.Cluster_STRICT_DNS:
		m.DnsLookupFamily = cluster.Cluster_V4_PREFERRED
		m.RespectDnsTtl = true
		m.DnsRefreshRate = c.config.GetDnsRefreshRate()
		m.LoadAssignment = dnsAssignment(name, c.svc.ExternalName, c.port)
	}
	p.apply(m)
	c.weighLocalities(m, p)
	more := make([]byte, 0, 768)
	more = nest(more, fieldClusterMetadata, func(b []byte) []byte { return c.appendMetadata(b, subset) })
	more = c.protocol(more, m, p)
	return m, c.secure(more, m, p, subset.GetName())
}

var endpointsFromADS = &cluster.Cluster_EdsClusterConfig{EdsConfig: fromADS()}

// invalid says why Envoy would refuse a cluster: what its API's rules tell, and what only its code knows.
func invalid(m *cluster.Cluster) error {
	if err := m.Validate(); err != nil {
		return err
	}
	if t := m.GetMaglevLbConfig().GetTableSize(); t != nil && !big.NewInt(int64(t.GetValue())).ProbablyPrime(0) {
		return fmt.Errorf("maglev.tableSize %d is not a prime number", t.GetValue())
	}
	if m.ConnectTimeout.AsDuration() < time.Millisecond {
		return fmt.Errorf("connectTimeout %s is under 1 ms", m.ConnectTimeout.AsDuration())
	}
	return nil
}

// discovery says how the cluster finds its hosts. A sidecar lets the app choose among the endpoints of a headless
// service: it has dialed one of them.
func (c *clusterBuilder) discovery(p policy) *cluster.Cluster_Type {
	t := cluster.Cluster_EDS
	switch {
	case p.passthrough() || c.svc.Resolution == mesh.ResolutionHeadless && !c.client.router:
		t = cluster.Cluster_ORIGINAL_DST
	case c.svc.Resolution == mesh.ResolutionDNS:
		t = cluster.Cluster_STRICT_DNS
	}
	return &cluster.Cluster_Type{Type: t}
}

func dnsAssignment(name, host string, p mesh.Port) *endpoint.ClusterLoadAssignment {
	port := p.TargetPort
	if port == 0 {
		port = p.Number
	}
	return &endpoint.ClusterLoadAssignment{
		ClusterName: name,
		Endpoints: []*endpoint.LocalityLbEndpoints{{
			LbEndpoints: []*endpoint.LbEndpoint{{
				HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
					Address: tcpAddress(host, uint32(port)),
				}},
			}},
		}},
	}
}

// appendMetadata is for telemetry, and for people who read a config dump.
func (c *clusterBuilder) appendMetadata(b []byte, subset *networking.Subset) []byte {
	return appendEntry(b, fieldFilterMetadata, "istio", func(b []byte) []byte {
		if c.rule != nil {
			b = appendStringField(b, "config", "/apis/networking.istio.io/v1/namespaces/"+c.rule.Namespace+"/destination-rule/"+c.rule.Name)
		}
		b = appendEntry(b, fieldStructFields, "default_original_port", func(b []byte) []byte {
			b = protowire.AppendTag(b, fieldNumberValue, protowire.Fixed64Type)
			return protowire.AppendFixed64(b, math.Float64bits(float64(c.port.Number)))
		})
		if c.svc.External {
			b = appendEntry(b, fieldStructFields, "external", func(b []byte) []byte { return appendNumber(b, fieldBoolValue, 1) })
		}
		b = appendEntry(b, fieldStructFields, "services", func(b []byte) []byte {
			return nest(b, fieldListValue, func(b []byte) []byte {
				return nest(b, fieldListValues, func(b []byte) []byte {
					return nest(b, fieldStructValue, func(b []byte) []byte {
						b = appendStringField(b, "host", c.svc.Host)
						b = appendStringField(b, "name", c.svc.Name)
						return appendStringField(b, "namespace", c.svc.Namespace)
					})
				})
			})
		})
		if subset != nil {
			b = appendStringField(b, "subset", subset.GetName())
		}
		return b
	})
}

// protocol chooses what is spoken upstream. A sidecar passes on what its app speaks; a gateway's clients choose HTTP/2 by themselves, which tells
// nothing about the app, so a gateway speaks HTTP/1.1 unless the port is declared to know better.
// It appends to the further fields of m.
func (c *clusterBuilder) protocol(more []byte, m *cluster.Cluster, p policy) []byte {
	if c.port.Protocol == mesh.ProtocolTCP || c.port.Protocol == mesh.ProtocolTLS || c.port.Protocol == mesh.ProtocolHTTPS {
		// Only a route can make requests of it (TLS origination by a DestinationRule); HTTP/1.1 then, which is the default.
		if p.http() == nil && p.tcp().GetMaxConnectionDuration() == nil {
			return more
		}
	}
	http := p.http()
	o := &upstreamhttp.HttpProtocolOptions{CommonHttpProtocolOptions: p.commonHTTP()}
	h1 := &core.Http1ProtocolOptions{}
	h2 := &core.Http2ProtocolOptions{}
	if n := http.GetMaxConcurrentStreams(); n > 0 {
		h2.MaxConcurrentStreams = u32(uint32(n))
	}
	if k := http.GetHttp2KeepAlive(); k != nil {
		h2.ConnectionKeepalive = &core.KeepaliveSettings{Interval: k.GetInterval(), Timeout: k.GetTimeout()}
	}
	upgrade := http.GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE ||
		http.GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_DEFAULT &&
			c.config.GetH2UpgradePolicy() == meshconfig.MeshConfig_UPGRADE
	switch {
	case http.GetUseClientProtocol():
		o.UpstreamProtocolOptions = useDownstreamProtocol(h1, h2)
	case c.port.Protocol.IsHTTP2(), upgrade && c.port.Protocol == mesh.ProtocolHTTP:
		o.UpstreamProtocolOptions = &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: h2},
			},
		}
	case c.client.router, !c.port.Protocol.IsHTTP() && c.port.Protocol != mesh.ProtocolAuto:
		o.UpstreamProtocolOptions = &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: h1},
			},
		}
	case p.pool == nil && p.tls == nil:
		return append(more, downstreamProtocol...)
	default:
		o.UpstreamProtocolOptions = useDownstreamProtocol(h1, h2)
	}
	if t := p.tls; t != nil && t.GetSni() == "" &&
		(t.GetMode() == networking.ClientTLSSettings_SIMPLE || t.GetMode() == networking.ClientTLSSettings_MUTUAL) {
		o.UpstreamHttpProtocolOptions = &core.UpstreamHttpProtocolOptions{
			AutoSni:           true,
			AutoSanValidation: len(t.GetSubjectAltNames()) == 0 && !t.GetInsecureSkipVerify().GetValue(),
		}
	}
	setHTTPProtocol(m, o)
	return more
}

// downstreamProtocol is the further field that nearly all clusters of sidecars have.
var downstreamProtocol = func() []byte {
	var m cluster.Cluster
	setHTTPProtocol(&m, &upstreamhttp.HttpProtocolOptions{
		UpstreamProtocolOptions: useDownstreamProtocol(&core.Http1ProtocolOptions{}, &core.Http2ProtocolOptions{}),
	})
	return marshal(&m)
}()

func useDownstreamProtocol(h1 *core.Http1ProtocolOptions, h2 *core.Http2ProtocolOptions) *upstreamhttp.HttpProtocolOptions_UseDownstreamProtocolConfig {
	return &upstreamhttp.HttpProtocolOptions_UseDownstreamProtocolConfig{
		UseDownstreamProtocolConfig: &upstreamhttp.HttpProtocolOptions_UseDownstreamHttpConfig{
			HttpProtocolOptions:  h1,
			Http2ProtocolOptions: h2,
		},
	}
}

func setHTTPProtocol(m *cluster.Cluster, o *upstreamhttp.HttpProtocolOptions) {
	m.TypedExtensionProtocolOptions = map[string]*anypb.Any{
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": anyOf(o),
	}
}

// connectTimeout is MeshConfig.connectTimeout, 10 s when it says nothing.
func connectTimeout(m *meshconfig.MeshConfig) *durationpb.Duration {
	if d := m.GetConnectTimeout(); d.AsDuration() >= time.Millisecond {
		return d
	}
	return durationpb.New(10 * time.Second)
}

// blackHole takes connections and requests that must not go anywhere.
func blackHole(m *meshconfig.MeshConfig) *Resource {
	return newResource(Cluster, blackHoleCluster, &cluster.Cluster{
		Name:                 blackHoleCluster,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
		ConnectTimeout:       connectTimeout(m),
	})
}

// passthrough goes where the app was going.
func passthrough(m *meshconfig.MeshConfig) *Resource {
	c := &cluster.Cluster{
		Name:                 passthroughCluster,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_ORIGINAL_DST},
		LbPolicy:             cluster.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:       connectTimeout(m),
		CircuitBreakers:      circuitBreakers(nil),
	}
	setHTTPProtocol(c, &upstreamhttp.HttpProtocolOptions{
		UpstreamProtocolOptions: useDownstreamProtocol(&core.Http1ProtocolOptions{}, &core.Http2ProtocolOptions{}),
	})
	return newResource(Cluster, passthroughCluster, c)
}

// subset returns a DestinationRule's subset by name, or nil.
func subsetOf(rule *mesh.DestinationRule, name string) *networking.Subset {
	all := ruleSpec(rule).GetSubsets()
	if i := slices.IndexFunc(all, func(s *networking.Subset) bool { return s.GetName() == name }); i >= 0 {
		return all[i]
	}
	return nil
}

func ruleSpec(r *mesh.DestinationRule) *networking.DestinationRule {
	if r == nil {
		return nil
	}
	return r.Spec
}

// checkRule reports what a DestinationRule says in vain.
func (h *hostBuilder) checkRule() {
	if h.rule == nil {
		return
	}
	check := func(t *networking.TrafficPolicy, field string) {
		if t.GetOutlierDetection().GetConsecutiveErrors() != 0 { //nolint:staticcheck // old manifests
			h.problem(h.rule.Ref, field+".outlierDetection.consecutiveErrors",
				"has no effect since Istio 1.6; write consecutive5xxErrors or consecutiveGatewayErrors")
		}
	}
	check(h.rule.Spec.GetTrafficPolicy(), "spec.trafficPolicy")
	for i, s := range h.rule.Spec.GetSubsets() {
		check(s.GetTrafficPolicy(), "spec.subsets["+strconv.Itoa(i)+"].trafficPolicy")
	}
}
