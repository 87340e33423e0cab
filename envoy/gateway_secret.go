package envoy

import (
	"iter"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

// Where the certificates of a gateway's servers come from: files of its pod, whose contents never pass through the control plane, or Secrets
// (Istio API: ServerTLSSettings). Both are delivered as SDS secrets, because Envoy follows changes of these only: connections
// stay, new ones get the new certificate.

// secretScheme begins the names of SDS secrets that are made of Kubernetes Secrets (Istio's name).
const secretScheme = "kubernetes://"

// authoritiesName is the SDS secret with the authorities that belong to a credential (Istio's name).
func authoritiesName(credential string) string { return secretScheme + credential + "-cacert" }

func usesSecrets(t *networking.ServerTLSSettings) bool {
	return t.GetCredentialName() != "" || len(t.GetCredentialNames()) > 0
}

// credentialFields yields the names of Secrets in a server's settings, by field.
func credentialFields(t *networking.ServerTLSSettings) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		if n := t.GetCredentialName(); n != "" && !yield("credentialName", n) {
			return
		}
		for i, n := range t.GetCredentialNames() {
			if !yield("credentialNames["+strconv.Itoa(i)+"]", n) {
				return
			}
		}
		if n := t.GetCaCertCredentialName(); n != "" {
			yield("caCertCredentialName", n)
		}
	}
}

// certificates adds the server's certificates and returns the names of their SDS secrets. One that is missing keeps its name: Envoy
// resets connections to this server then, and the others on the port go on.
func (b *gatewayBuilder) certificates(s *gatewayServer) []string {
	t := s.GetTls()
	if !usesSecrets(t) {
		var names []string
		files := t.GetTlsCertificates()
		if len(files) == 0 {
			files = []*networking.ServerTLSSettings_TLSCertificate{{ServerCertificate: t.GetServerCertificate(), PrivateKey: t.GetPrivateKey()}}
		}
		for _, f := range files {
			names = append(names, b.fileCertificate(s, f.GetServerCertificate(), f.GetPrivateKey()))
		}
		return names
	}
	var names []string
	for field, credential := range credentialFields(t) {
		if field == "caCertCredentialName" {
			continue
		}
		name := secretScheme + credential
		names = append(names, name)
		c := b.credential(credential)
		b.judge(s, field, credential, c)
		if c == nil || c.Certificate == nil {
			if c != nil && c.Fault == "" {
				b.problem(s.gateway.Ref, s.field("tls."+field), c.Ref.String()+" has no certificate: add tls.crt and tls.key; connections to these hosts are reset until then")
			}
			continue
		}
		m := &tls.TlsCertificate{CertificateChain: inline(c.Certificate), PrivateKey: inline(c.Key)}
		if len(c.Staple) > 0 {
			m.OcspStaple = inline(c.Staple)
		}
		r := newResource(Secret, name, &tls.Secret{Name: name, Type: &tls.Secret_TlsCertificate{TlsCertificate: m}}, s.gateway.Ref, c.Ref)
		r.Private = true
		b.add(r)
	}
	return names
}

// authorities adds those of clients' certificates and returns the name of their SDS secret; empty when clients need none.
func (b *gatewayBuilder) authorities(s *gatewayServer) string {
	t := s.GetTls()
	field, credential := "caCertCredentialName", t.GetCaCertCredentialName()
	switch {
	case !needsClientCertificate(t):
		return ""
	case credential == "" && usesSecrets(t):
		field, credential = "credentialName", t.GetCredentialName()
		if credential == "" {
			field, credential = "credentialNames[0]", t.GetCredentialNames()[0]
		}
	case credential == "":
		return b.fileAuthorities(s, t.GetCaCertificates())
	}
	name := authoritiesName(credential)
	c := look(b.view, func(snap *mesh.Snapshot) *mesh.Credential { return snap.AuthoritiesFor(b.client.namespace, credential) }, same)
	if field == "caCertCredentialName" || c != nil && c.Ref.Name != credential { // else it is the certificate's, and judged there
		b.judge(s, field, credential, c)
	}
	if c == nil || c.Authorities == nil {
		if c != nil && c.Fault == "" {
			b.problem(s.gateway.Ref, s.field("tls."+field), "mode "+t.GetMode().String()+" needs the authorities of the clients' certificates: add ca.crt to "+
				c.Ref.String()+", or make a Secret "+credential+"-cacert with it; connections to these hosts are reset until then")
		}
		return name
	}
	v := &tls.CertificateValidationContext{TrustedCa: inline(c.Authorities)}
	if len(c.Revoked) > 0 {
		v.Crl = inline(c.Revoked)
	}
	b.add(newResource(Secret, name, &tls.Secret{Name: name, Type: &tls.Secret_ValidationContext{ValidationContext: v}}, s.gateway.Ref, c.Ref))
	return name
}

// credential reads a Secret of the gateway's own namespace: no other is ever within reach.
func (b *gatewayBuilder) credential(name string) *mesh.Credential {
	return look(b.view, func(snap *mesh.Snapshot) *mesh.Credential { return snap.Credential(b.client.namespace, name) }, same)
}

func same[T any](x, y *T) bool { return x == y }

// judge tells the user what is wrong with a Secret.
func (b *gatewayBuilder) judge(s *gatewayServer, field, name string, c *mesh.Credential) {
	ns := b.client.namespace
	switch {
	case c == nil:
		b.problem(s.gateway.Ref, s.field("tls."+field), "Secret "+ns+"/"+name+" does not exist in the namespace of the gateway's pods; make it with: kubectl create secret tls "+
			name+" -n "+ns+" --cert=FILE --key=FILE; connections to these hosts are reset until then")
	case c.Fault != "" && (c.Certificate != nil || c.Authorities != nil):
		b.problem(s.gateway.Ref, s.field("tls."+field), c.Ref.String()+": "+c.Fault+"; what it had before stays in use")
	case c.Fault != "":
		b.problem(s.gateway.Ref, s.field("tls."+field), c.Ref.String()+": "+c.Fault+"; connections to these hosts are reset until then")
	}
}

func (b *gatewayBuilder) fileCertificate(s *gatewayServer, cert, key string) string {
	name := "file-cert:" + cert + "~" + key
	b.add(newResource(Secret, name, &tls.Secret{Name: name, Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
		CertificateChain: fileSource(cert),
		PrivateKey:       fileSource(key),
		WatchedDirectory: &core.WatchedDirectory{Path: directory(cert)},
	}}}, s.gateway.Ref))
	return name
}

func (b *gatewayBuilder) fileAuthorities(s *gatewayServer, ca string) string {
	name := "file-root:" + ca
	b.add(newResource(Secret, name, &tls.Secret{Name: name, Type: &tls.Secret_ValidationContext{ValidationContext: &tls.CertificateValidationContext{
		TrustedCa:        fileSource(ca),
		WatchedDirectory: &core.WatchedDirectory{Path: directory(ca)},
	}}}, s.gateway.Ref))
	return name
}

func fileSource(path string) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_Filename{Filename: path}}
}

func inline(data []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: data}}
}

func directory(path string) string {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return path[:i]
	}
	return "/"
}
