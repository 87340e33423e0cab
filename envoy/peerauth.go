package envoy

import (
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/weft-mesh/weft/mesh"
)

// What a mesh client offers by ALPN. It is only ever a message from proxy to proxy ("this TLS is the mesh's, and this
// is inside"): no server lists these names in its own alpn_protocols, because Envoy takes a negotiated name it does
// not know for HTTP/1.
var (
	alpnMeshHTTP = []string{"istio-http/1.0", "istio-http/1.1", "istio-h2"}
	alpnMeshTCP  = []string{"istio", "istio-peer-exchange"}
	alpnMesh     = append(append([]string{}, alpnMeshTCP...), alpnMeshHTTP...)

	// What the http_inspector listener filter reports for plaintext.
	alpnPlainHTTP = []string{"http/1.0", "http/1.1", "h2c"}
)

// Names that listener filters give to the transport of a connection.
const (
	transportTLS = "tls"
	transportRaw = "raw_buffer"
)

// sniffTimeout is how long an inbound listener waits for a client's first bytes before it takes the connection for
// plaintext of a protocol in which the server speaks first (MySQL, SMTP). Istio waits as long.
const sniffTimeout = time.Second

// An arrival is one way in which connections come to an inbound port, and what is done with them.
type arrival struct {
	transport string   // as seen by the tls_inspector; empty: not looked at
	alpn      []string // as seen by the tls_inspector or http_inspector; nil: any
	mtls      bool     // mesh TLS ends here
	http      bool     // requests are read; otherwise bytes are passed on
}

// arrivals lists every kind of connection that a port accepts. What is in no arrival is reset: Envoy looks at the
// destination port first, then the transport, then ALPN, and never goes back a step, so one port's chains must be
// complete in themselves and never fall through to the catch-all (Envoy: FilterChainMatch).
//
// A port whose protocol nobody declared is sniffed; inside mesh TLS the client's proxy tells by ALPN what it sniffed.
// Foreign TLS, such as an app that serves HTTPS itself, is passed through untouched where plaintext is allowed.
func arrivals(mode mesh.MTLSMode, protocol mesh.Protocol) []arrival {
	http, auto := protocol.IsHTTP(), protocol == mesh.ProtocolAuto
	switch {
	case mode == mesh.MTLSDisable && auto:
		return []arrival{
			{alpn: alpnPlainHTTP, http: true},
			{},
		}
	case mode == mesh.MTLSDisable:
		return []arrival{{http: http}}
	case mode == mesh.MTLSStrict && auto:
		return []arrival{
			{transport: transportTLS, alpn: alpnMeshHTTP, mtls: true, http: true},
			{transport: transportTLS, mtls: true},
		}
	case mode == mesh.MTLSStrict:
		return []arrival{{transport: transportTLS, mtls: true, http: http}}
	case auto:
		return []arrival{
			{transport: transportTLS, alpn: alpnMeshHTTP, mtls: true, http: true},
			{transport: transportTLS, alpn: alpnMeshTCP, mtls: true},
			{transport: transportTLS},
			{transport: transportRaw, alpn: alpnPlainHTTP, http: true},
			{transport: transportRaw},
		}
	default:
		return []arrival{
			{transport: transportTLS, alpn: alpnMesh, mtls: true, http: http},
			{transport: transportTLS},
			{transport: transportRaw, http: http},
		}
	}
}

// match is the FilterChainMatch of an arrival on a port; port 0 is every port that has no chain of its own.
func (a arrival) match(port uint16) *listener.FilterChainMatch {
	m := &listener.FilterChainMatch{TransportProtocol: a.transport, ApplicationProtocols: a.alpn}
	if port != 0 {
		m.DestinationPort = u32(uint32(port))
	}
	return m
}

// Which listener filters look at the first bytes of connections to a port. They are switched off only where they would make a server
// that speaks first wait for nothing: any other distinction between ports would change the listener with every
// Service, and Envoy closes the connections of all ports when anything but a filter chain changes.
func needsTLSInspector(mode mesh.MTLSMode) bool { return mode != mesh.MTLSDisable }

func needsHTTPInspector(mode mesh.MTLSMode, protocol mesh.Protocol) bool {
	return mode != mesh.MTLSDisable || protocol.IsHTTP() || protocol == mesh.ProtocolAuto
}

// serverMTLS is the server's half of mesh TLS: the workload's SVID, and a client certificate that chains to the
// mesh's roots and names an identity of the trust domain or of one of its aliases.
// (Istio API: MeshConfig.trustDomainAliases, MeshConfig.meshMTLS.)
func serverMTLS(m *meshconfig.MeshConfig, trustDomain string) *core.TransportSocket {
	params := meshTLSParams()
	if m.GetMeshMTLS().GetMinProtocolVersion() == meshconfig.MeshConfig_TLSConfig_TLSV1_3 {
		params.TlsMinimumProtocolVersion = tls.TlsParameters_TLSv1_3
	}
	params.CipherSuites = m.GetMeshMTLS().GetCipherSuites()
	params.EcdhCurves = m.GetMeshMTLS().GetEcdhCurves()
	var peers []*tls.SubjectAltNameMatcher
	for _, domain := range append([]string{trustDomain}, m.GetTrustDomainAliases()...) {
		peers = append(peers, &tls.SubjectAltNameMatcher{
			SanType: tls.SubjectAltNameMatcher_URI,
			Matcher: &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Prefix{Prefix: "spiffe://" + domain + "/"}},
		})
	}
	return transportSocket(tlsSocketName, &tls.DownstreamTlsContext{
		RequireClientCertificate: yes(),
		CommonTlsContext: &tls.CommonTlsContext{
			TlsParams:                      params,
			AlpnProtocols:                  []string{"h2", "http/1.1"},
			TlsCertificateSdsSecretConfigs: []*tls.SdsSecretConfig{sdsSecret("default")},
			ValidationContextType: &tls.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: &tls.CommonTlsContext_CombinedCertificateValidationContext{
					DefaultValidationContext:         &tls.CertificateValidationContext{MatchTypedSubjectAltNames: peers},
					ValidationContextSdsSecretConfig: sdsSecret("ROOTCA"),
				},
			},
		},
	})
}
