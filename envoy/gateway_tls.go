package envoy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

// admitTLS says why a TLS server cannot be served, if so.
func (v *view) admitTLS(s *gatewayServer, refuse func(field, message string) bool) bool {
	t := s.GetTls()
	switch t.GetMode() {
	case networking.ServerTLSSettings_PASSTHROUGH, networking.ServerTLSSettings_ISTIO_MUTUAL:
		return true
	case networking.ServerTLSSettings_AUTO_PASSTHROUGH:
		return refuse("tls.mode", "AUTO_PASSTHROUGH is for traffic between networks, which is not supported yet")
	}
	switch {
	case usesSecrets(t):
		for field, name := range credentialFields(t) {
			if fault := mesh.CredentialNameFault(name); fault != "" {
				return refuse("tls."+field, fmt.Sprintf("%q: %s", name, fault))
			}
		}
	case len(t.GetTlsCertificates()) == 0 && (t.GetServerCertificate() == "" || t.GetPrivateKey() == ""):
		return refuse("tls", "mode "+t.GetMode().String()+" needs credentialName, or serverCertificate and privateKey")
	case needsClientCertificate(t) && t.GetCaCertificates() == "" && t.GetCaCertCredentialName() == "":
		return refuse("tls.caCertificates", "mode "+t.GetMode().String()+" needs the authorities of the clients' certificates")
	}
	return true
}

func needsClientCertificate(t *networking.ServerTLSSettings) bool {
	return t.GetMode() == networking.ServerTLSSettings_MUTUAL || t.GetMode() == networking.ServerTLSSettings_OPTIONAL_MUTUAL
}

// tlsChains gives each TLS server of a port its filter chains, chosen by server name. A name can lead to one chain only: the oldest
// Gateway has it.
func (b *gatewayBuilder) tlsChains(listenerName string, servers []*gatewayServer) []*listener.FilterChain {
	var out []*listener.FilterChain
	taken, tables := map[string]bool{}, map[string]bool{}
	claim := func(ref mesh.Ref, field string, names []string) *listener.FilterChainMatch {
		names = slices.DeleteFunc(slices.Clone(names), func(n string) bool {
			if strings.Contains(strings.TrimPrefix(n, "*"), "*") || strings.HasPrefix(n, "*") && n != "*" && n[1] != '.' {
				b.problem(ref, field, "server name "+n+" cannot be matched: a wildcard stands for whole labels, as in *.example.com")
				return true
			}
			if taken[n] {
				b.problem(ref, field, "server name "+n+" on this port belongs to an earlier server or an older Gateway; remove one of them")
				return true
			}
			return false
		})
		if len(names) == 0 {
			return nil
		}
		for _, n := range names {
			taken[n] = true
		}
		if slices.Contains(names, "*") {
			names = nil // any name, or none
		}
		return &listener.FilterChainMatch{TransportProtocol: transportTLS, ServerNames: names}
	}
	for _, s := range servers {
		if s.passthrough() {
			for _, r := range b.sniRoutes(s) {
				if m := claim(r.vs.Ref, r.field, r.names); m != nil {
					out = append(out, &listener.FilterChain{FilterChainMatch: m, Filters: r.filters})
				}
			}
			continue
		}
		var filters []*listener.Filter
		if s.requests() {
			name := strings.Join([]string{"https", portName(s.number()), s.GetPort().GetName(), s.gateway.Name, s.gateway.Namespace}, ".")
			if s.GetBind() != "" {
				name += "." + s.GetBind()
			}
			if tables[name] { // two servers of one port name
				name += "." + strconv.Itoa(s.index)
			}
			tables[name] = true
			b.add(b.gatewayRoutes(name, []*gatewayServer{s}))
			filters = []*listener.Filter{b.requests(name, listenerName)}
		} else if filters = b.tcpFilters(s); filters == nil {
			continue
		}
		if m := claim(s.gateway.Ref, s.field("hosts"), s.hostNames()); m != nil {
			out = append(out, &listener.FilterChain{FilterChainMatch: m, TransportSocket: b.endTLS(s), Filters: filters})
		}
	}
	return out
}

// endTLS is the server's certificate and what it asks of clients (Istio API: ServerTLSSettings).
func (b *gatewayBuilder) endTLS(s *gatewayServer) *core.TransportSocket {
	t := s.GetTls()
	if t.GetMode() == networking.ServerTLSSettings_ISTIO_MUTUAL {
		return serverMTLS(b.mesh(), b.snap.TrustDomain())
	}
	common := &tls.CommonTlsContext{
		TlsParams: &tls.TlsParameters{
			TlsMinimumProtocolVersion: tlsVersion(t.GetMinProtocolVersion(), tls.TlsParameters_TLSv1_2),
			TlsMaximumProtocolVersion: tlsVersion(t.GetMaxProtocolVersion(), tls.TlsParameters_TLSv1_3),
			CipherSuites:              t.GetCipherSuites(),
		},
	}
	if s.requests() {
		common.AlpnProtocols = []string{"h2", "http/1.1"}
	}
	for _, name := range b.certificates(s) {
		common.TlsCertificateSdsSecretConfigs = append(common.TlsCertificateSdsSecretConfigs, sdsSecret(name))
	}
	if root := b.authorities(s); root != "" {
		common.ValidationContextType = &tls.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tls.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: &tls.CertificateValidationContext{
					MatchTypedSubjectAltNames: slices.Concat(
						exactSANs(tls.SubjectAltNameMatcher_DNS, t.GetSubjectAltNames()),
						exactSANs(tls.SubjectAltNameMatcher_URI, t.GetSubjectAltNames())),
					VerifyCertificateSpki: t.GetVerifyCertificateSpki(),
					VerifyCertificateHash: t.GetVerifyCertificateHash(),
				},
				ValidationContextSdsSecretConfig: sdsSecret(root),
			},
		}
	}
	d := &tls.DownstreamTlsContext{CommonTlsContext: common}
	switch t.GetMode() {
	case networking.ServerTLSSettings_MUTUAL:
		d.RequireClientCertificate = yes()
	case networking.ServerTLSSettings_OPTIONAL_MUTUAL:
		d.RequireClientCertificate = no()
	}
	return transportSocket(tlsSocketName, d)
}

func tlsVersion(v networking.ServerTLSSettings_TLSProtocol, auto tls.TlsParameters_TlsProtocol) tls.TlsParameters_TlsProtocol {
	switch v {
	case networking.ServerTLSSettings_TLSV1_0:
		return tls.TlsParameters_TLSv1_0
	case networking.ServerTLSSettings_TLSV1_1:
		return tls.TlsParameters_TLSv1_1
	case networking.ServerTLSSettings_TLSV1_2:
		return tls.TlsParameters_TLSv1_2
	case networking.ServerTLSSettings_TLSV1_3:
		return tls.TlsParameters_TLSv1_3
	}
	return auto
}
