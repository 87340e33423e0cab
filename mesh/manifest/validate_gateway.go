package manifest

import (
	"strings"

	"github.com/weft-mesh/weft/mesh"
	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/util/validation"
)

// gatewayProtocols are the words for Server.port.protocol (Istio API: Gateway, Port).
var gatewayProtocols = []string{"HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "TCP", "TLS"}

// gateway follows Istio's API reference, Gateway.
func (c *checker) gateway(g *networking.Gateway) {
	if len(g.Selector) == 0 {
		c.warn("spec.selector", "empty: the gateway applies to every workload of the mesh")
	}
	if len(g.Servers) == 0 {
		c.fail("spec.servers", "at least one server is required")
	}
	names := map[string]int{}
	for i, s := range g.Servers {
		path := at("spec.servers", "[%d]", i)
		if s.Port != nil && s.Port.Name != "" {
			if first, twice := names[s.Port.Name]; twice {
				c.fail(path+".port.name", "%q is the name of the port of servers[%d] already", s.Port.Name, first)
			}
			names[s.Port.Name] = i
		}
		c.server(path, s)
	}
}

func (c *checker) server(path string, s *networking.Server) {
	if s.Port == nil {
		c.fail(path+".port", "required field is missing")
		return
	}
	if s.Port.Number == 0 {
		c.fail(path+".port.number", "required field is missing")
	}
	if s.Port.Name == "" {
		c.fail(path+".port.name", "required field is missing")
	}
	proto := mesh.ParseProtocol(s.Port.Protocol)
	if proto == mesh.ProtocolAuto || proto == mesh.ProtocolUDP {
		if n := Nearest(strings.ToUpper(s.Port.Protocol), gatewayProtocols); n != "" {
			c.fail(path+".port.protocol", "%q is not a protocol of gateways; did you mean %s?", s.Port.Protocol, n)
		} else {
			c.fail(path+".port.protocol", "%q is not a protocol of gateways: use one of %s", s.Port.Protocol, strings.Join(gatewayProtocols, ", "))
		}
	}
	if len(s.Hosts) == 0 {
		c.fail(path+".hosts", "at least one host is required; \"*\" stands for all")
	}
	for i, h := range s.Hosts {
		p := at(path, ".hosts[%d]", i)
		if ns, name, ok := strings.Cut(h, "/"); ok {
			if ns != "*" && ns != "." && len(validation.IsDNS1123Label(ns)) > 0 {
				c.fail(p, "%q is not a namespace, \".\" or \"*\"", ns)
			}
			h = name
		}
		c.host(p, h)
	}
	c.serverTLS(path, s, proto)
}

func (c *checker) serverTLS(path string, s *networking.Server, proto mesh.Protocol) {
	t := s.Tls
	secure := proto == mesh.ProtocolHTTPS || proto == mesh.ProtocolTLS
	switch {
	case secure && t == nil:
		c.fail(path+".tls", "required for protocol %s", s.Port.Protocol)
		return
	case t == nil:
		return
	case proto.IsHTTP() && !t.HttpsRedirect:
		c.warn(path+".tls", "has no effect: protocol %s is plaintext; write HTTPS", s.Port.Protocol)
		return
	case proto.IsHTTP():
		return
	case t.HttpsRedirect:
		c.fail(path+".tls.httpsRedirect", "is for a server with protocol HTTP: %s is encrypted already", s.Port.Protocol)
	}
	credential := t.CredentialName != "" || len(t.CredentialNames) > 0
	for i, name := range t.CredentialNames {
		if fault := mesh.CredentialNameFault(name); fault != "" {
			c.fail(at(path, ".tls.credentialNames[%d]", i), "%q: %s", name, fault)
		}
	}
	for _, f := range []struct{ field, name string }{{"credentialName", t.CredentialName}, {"caCertCredentialName", t.CaCertCredentialName}} {
		if fault := mesh.CredentialNameFault(f.name); f.name != "" && fault != "" {
			c.fail(path+".tls."+f.field, "%q: %s", f.name, fault)
		}
	}
	files := t.ServerCertificate != "" && t.PrivateKey != "" || len(t.TlsCertificates) > 0
	switch t.Mode {
	case networking.ServerTLSSettings_SIMPLE, networking.ServerTLSSettings_OPTIONAL_MUTUAL, networking.ServerTLSSettings_MUTUAL:
		if !credential && !files {
			c.fail(path+".tls", "with %s either credentialName or both serverCertificate and privateKey are required", t.Mode)
		}
		if t.Mode == networking.ServerTLSSettings_MUTUAL && !credential && t.CaCertificates == "" {
			c.fail(path+".tls.caCertificates", "required with MUTUAL unless credentialName is given")
		}
	case networking.ServerTLSSettings_PASSTHROUGH, networking.ServerTLSSettings_AUTO_PASSTHROUGH:
		if credential || files {
			c.warn(path+".tls", "with %s TLS is not terminated here: the certificate has no effect", t.Mode)
		}
	case networking.ServerTLSSettings_ISTIO_MUTUAL:
		if credential || files {
			c.fail(path+".tls", "with ISTIO_MUTUAL the mesh's own certificates are used: no other may be given")
		}
	}
	if t.MinProtocolVersion != 0 && t.MaxProtocolVersion != 0 && t.MinProtocolVersion > t.MaxProtocolVersion {
		c.fail(path+".tls.minProtocolVersion", "%s is above maxProtocolVersion %s", t.MinProtocolVersion, t.MaxProtocolVersion)
	}
}
