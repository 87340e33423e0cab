package envoy

import (
	"slices"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

// systemRoots is where the distroless Envoy image, like Debian, keeps the public authorities.
const systemRoots = "/etc/ssl/certs/ca-certificates.crt"

// secure chooses the transport of a cluster: what the DestinationRule says, else mesh TLS to each endpoint that takes it.
// It appends to the further fields of m.
func (c *clusterBuilder) secure(more []byte, m *cluster.Cluster, p policy, subset string) []byte {
	sni := clusterSNI(c.port.Number, subset, c.svc.Host)
	switch mode := p.tls.GetMode(); {
	case p.tls == nil:
		return c.autoMTLS(more, m, sni)
	case mode == networking.ClientTLSSettings_DISABLE:
	case mode == networking.ClientTLSSettings_ISTIO_MUTUAL:
		if s := p.tls.GetSni(); s != "" {
			sni = s
		}
		sans := c.identities()
		if len(p.tls.GetSubjectAltNames()) > 0 {
			sans = p.tls.GetSubjectAltNames()
		}
		m.TransportSocket = clientMTLS(sni, c.alpn(), sans)
	default:
		m.TransportSocket = c.originate(p.tls)
	}
	return more
}

// Field numbers of cluster.v3.Cluster.TransportSocketMatch.
const (
	fieldSocketMatchName   = 1
	fieldSocketMatch       = 2
	fieldSocketMatchSocket = 3
)

// autoMTLS uses mesh TLS exactly with those endpoints whose metadata says that they take it, so that one cluster can hold pods with and
// without a sidecar (Istio: "Auto mutual TLS").
func (c *clusterBuilder) autoMTLS(more []byte, m *cluster.Cluster, sni string) []byte {
	if auto := c.config.GetEnableAutoMtls(); auto != nil && !auto.GetValue() || c.svc.External {
		return more
	}
	switch m.GetType() {
	case cluster.Cluster_STRICT_DNS:
	case cluster.Cluster_ORIGINAL_DST:
		// The hosts are what clients dialed: they carry no metadata, so all or none.
		if len(c.endpoints) > 0 && !slices.Contains(c.modes, mesh.MTLSDisable) {
			m.TransportSocket = clientMTLS(sni, c.alpn(), c.identities())
		}
	default:
		// What matches nothing gets the cluster's own socket, which is plaintext. Istio says so in a second entry; that would be a
		// seventh of each cluster's bytes, on the wire and in the proxy.
		more = nest(more, fieldClusterSocketMatches, func(b []byte) []byte {
			b = appendText(b, fieldSocketMatchName, "tlsMode-istio")
			b = nest(b, fieldSocketMatch, appendTLSMode)
			return appendMessage(b, fieldSocketMatchSocket, marshal(clientMTLS(sni, c.alpn(), c.identities())))
		})
	}
	return more
}

// alpn tells the server's proxy what is inside the TLS.
func (c *clusterBuilder) alpn() []string {
	if c.port.Protocol.IsHTTP() || c.port.Protocol == mesh.ProtocolAuto {
		return alpnClientHTTP
	}
	return alpnClientTCP
}

// identities are the SPIFFE IDs that may answer for the port: those of the pods behind it.
func (c *clusterBuilder) identities() []string {
	var ids []string
	for _, e := range c.endpoints {
		if e.Workload != nil && e.Workload.ServiceAccount != "" {
			ids = append(ids, spiffeID(c.snap.TrustDomain(), e.Workload))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func spiffeID(trustDomain string, w *mesh.Workload) string {
	return "spiffe://" + trustDomain + "/ns/" + w.Namespace + "/sa/" + w.ServiceAccount
}

// originate is TLS as any client of the service would use it (Istio API: ClientTLSSettings, SIMPLE and MUTUAL).
func (c *clusterBuilder) originate(t *networking.ClientTLSSettings) *core.TransportSocket {
	common := &tls.CommonTlsContext{TlsParams: meshTLSParams()}
	if c.port.Protocol.IsHTTP2() {
		common.AlpnProtocols = []string{"h2"}
	}
	if t.GetCredentialName() != "" {
		c.problem(c.rule.Ref, "spec.trafficPolicy.tls.credentialName",
			"credentialName is only for gateways; in a sidecar name files in caCertificates, clientCertificate and privateKey")
	}
	if t.GetMode() == networking.ClientTLSSettings_MUTUAL && t.GetClientCertificate() != "" {
		common.TlsCertificates = []*tls.TlsCertificate{{
			CertificateChain: file(t.GetClientCertificate()),
			PrivateKey:       file(t.GetPrivateKey()),
		}}
	}
	if !t.GetInsecureSkipVerify().GetValue() {
		roots := t.GetCaCertificates()
		if roots == "" || roots == "system" {
			roots = systemRoots
		}
		v := &tls.CertificateValidationContext{TrustedCa: file(roots)}
		if t.GetCaCrl() != "" {
			v.Crl = file(t.GetCaCrl())
		}
		for _, name := range t.GetSubjectAltNames() {
			kind := tls.SubjectAltNameMatcher_DNS
			if strings.Contains(name, "://") {
				kind = tls.SubjectAltNameMatcher_URI
			}
			v.MatchTypedSubjectAltNames = append(v.MatchTypedSubjectAltNames, exactSANs(kind, []string{name})...)
		}
		common.ValidationContextType = &tls.CommonTlsContext_ValidationContext{ValidationContext: v}
	}
	return transportSocket(tlsSocketName, &tls.UpstreamTlsContext{Sni: t.GetSni(), CommonTlsContext: common})
}

func file(name string) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_Filename{Filename: name}}
}
