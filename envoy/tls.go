package envoy

import (
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

const tlsSocketName = "envoy.transport_sockets.tls"

// What a mesh client offers, by what it will say inside; see peerauth.go for the server's side.
var (
	alpnClientHTTP = []string{"istio-http/1.1", "istio"}
	alpnClientTCP  = []string{"istio-peer-exchange", "istio"}
)

// sdsSecret names a secret that comes over the ADS stream.
func sdsSecret(name string) *tls.SdsSecretConfig {
	return &tls.SdsSecretConfig{Name: name, SdsConfig: fromADS()}
}

// meshTLSParams: both sides are ours, so TLS 1.3; Envoy's default maximum for clients is 1.2.
func meshTLSParams() *tls.TlsParameters {
	return &tls.TlsParameters{
		TlsMinimumProtocolVersion: tls.TlsParameters_TLSv1_2,
		TlsMaximumProtocolVersion: tls.TlsParameters_TLSv1_3,
	}
}

// What the clusters of the whole mesh say alike.
var (
	clientTLSParams = meshTLSParams()
	ownCertificate  = []*tls.SdsSecretConfig{sdsSecret("default")}
	meshRoots       = sdsSecret("ROOTCA")
)

// clientMTLS is the client's half of mesh TLS: the workload's SVID, and a server that is one of the identities. With none given,
// any identity of the mesh is accepted.
func clientMTLS(sni string, alpn, identities []string) *core.TransportSocket {
	return transportSocket(tlsSocketName, &tls.UpstreamTlsContext{
		Sni: sni,
		CommonTlsContext: &tls.CommonTlsContext{
			TlsParams:                      clientTLSParams,
			AlpnProtocols:                  alpn,
			TlsCertificateSdsSecretConfigs: ownCertificate,
			ValidationContextType: &tls.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: &tls.CommonTlsContext_CombinedCertificateValidationContext{
					DefaultValidationContext: &tls.CertificateValidationContext{
						MatchTypedSubjectAltNames: exactSANs(tls.SubjectAltNameMatcher_URI, identities),
					},
					ValidationContextSdsSecretConfig: meshRoots,
				},
			},
		},
	})
}

func exactSANs(kind tls.SubjectAltNameMatcher_SanType, names []string) []*tls.SubjectAltNameMatcher {
	var out []*tls.SubjectAltNameMatcher
	for _, n := range names {
		out = append(out, &tls.SubjectAltNameMatcher{
			SanType: kind,
			Matcher: &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Exact{Exact: n}},
		})
	}
	return out
}
