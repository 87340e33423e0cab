package envoy

import (
	"slices"
	"testing"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/weft-mesh/weft/mesh"
)

// A caller is one kind of client, as the listener filters see it.
type caller struct {
	transport string
	alpn      []string
}

var callers = map[string]caller{
	"plain HTTP/1.1":     {transport: transportRaw, alpn: []string{"http/1.1"}},
	"plain h2c":          {transport: transportRaw, alpn: []string{"h2c"}},
	"plain bytes":        {transport: transportRaw},
	"mesh TLS, HTTP":     {transport: transportTLS, alpn: []string{"istio-http/1.1", "istio"}},
	"mesh TLS, bytes":    {transport: transportTLS, alpn: []string{"istio-peer-exchange", "istio"}},
	"foreign TLS":        {transport: transportTLS},
	"foreign TLS, h2":    {transport: transportTLS, alpn: []string{"h2", "http/1.1"}},
	"mesh TLS, old peer": {transport: transportTLS, alpn: []string{"istio"}},
}

// choose picks a filter chain as Envoy does: by destination port, then transport, then ALPN, then the source; the most specific
// of each, and never back (Envoy: FilterChainManagerImpl).
func choose(chains []*listener.FilterChain, port uint16, c caller, fromPod bool) *listener.FilterChain {
	narrow := func(exact, open func(*listener.FilterChainMatch) bool) {
		pick := func(f func(*listener.FilterChainMatch) bool) (out []*listener.FilterChain) {
			for _, ch := range chains {
				if f(ch.GetFilterChainMatch()) {
					out = append(out, ch)
				}
			}
			return out
		}
		if hit := pick(exact); len(hit) > 0 {
			chains = hit
		} else {
			chains = pick(open)
		}
	}
	narrow(
		func(m *listener.FilterChainMatch) bool { return m.GetDestinationPort().GetValue() == uint32(port) },
		func(m *listener.FilterChainMatch) bool { return m.GetDestinationPort() == nil })
	narrow(
		func(m *listener.FilterChainMatch) bool { return m.GetTransportProtocol() == c.transport },
		func(m *listener.FilterChainMatch) bool { return m.GetTransportProtocol() == "" })
	found := false
	for _, alpn := range c.alpn {
		if slices.ContainsFunc(chains, func(ch *listener.FilterChain) bool {
			return slices.Contains(ch.GetFilterChainMatch().GetApplicationProtocols(), alpn)
		}) {
			narrow(func(m *listener.FilterChainMatch) bool { return slices.Contains(m.GetApplicationProtocols(), alpn) },
				func(*listener.FilterChainMatch) bool { return false })
			found = true
			break
		}
	}
	if !found {
		narrow(func(m *listener.FilterChainMatch) bool { return len(m.GetApplicationProtocols()) == 0 },
			func(*listener.FilterChainMatch) bool { return false })
	}
	narrow(
		func(m *listener.FilterChainMatch) bool {
			return fromPod && m.GetSourceType() == listener.FilterChainMatch_SAME_IP_OR_LOOPBACK
		},
		func(m *listener.FilterChainMatch) bool { return m.GetSourceType() == listener.FilterChainMatch_ANY })
	if len(chains) == 0 {
		return nil
	}
	return chains[0]
}

// outcome says what a caller gets on a port: "reset", or how the connection is read.
func outcome(ch *listener.FilterChain) string {
	if ch == nil {
		return "reset"
	}
	out := "bytes"
	if ch.GetFilters()[0].GetName() == "envoy.filters.network.http_connection_manager" {
		out = "requests"
	}
	if ch.GetTransportSocket() != nil {
		out = "mtls " + out
	}
	return out
}

func TestEveryKindOfConnectionIsAcceptedOrRefusedAsPeerAuthenticationSays(t *testing.T) {
	const (
		http = mesh.ProtocolHTTP
		tcp  = mesh.ProtocolTCP
		auto = mesh.ProtocolAuto
	)
	want := map[mesh.MTLSMode]map[mesh.Protocol]map[string]string{
		mesh.MTLSPermissive: {
			http: {
				"plain HTTP/1.1": "requests", "plain h2c": "requests", "plain bytes": "requests",
				"mesh TLS, HTTP": "mtls requests", "mesh TLS, bytes": "mtls requests", "mesh TLS, old peer": "mtls requests",
				"foreign TLS": "bytes", "foreign TLS, h2": "bytes",
			},
			tcp: {
				"plain HTTP/1.1": "bytes", "plain h2c": "bytes", "plain bytes": "bytes",
				"mesh TLS, HTTP": "mtls bytes", "mesh TLS, bytes": "mtls bytes", "mesh TLS, old peer": "mtls bytes",
				"foreign TLS": "bytes", "foreign TLS, h2": "bytes",
			},
			auto: {
				"plain HTTP/1.1": "requests", "plain h2c": "requests", "plain bytes": "bytes",
				"mesh TLS, HTTP": "mtls requests", "mesh TLS, bytes": "mtls bytes", "mesh TLS, old peer": "mtls bytes",
				"foreign TLS": "bytes", "foreign TLS, h2": "bytes",
			},
		},
		mesh.MTLSStrict: {
			http: {
				"plain HTTP/1.1": "reset", "plain h2c": "reset", "plain bytes": "reset",
				"mesh TLS, HTTP": "mtls requests", "mesh TLS, bytes": "mtls requests", "mesh TLS, old peer": "mtls requests",
				// Refused by the handshake, unless the client has a certificate of the mesh.
				"foreign TLS": "mtls requests", "foreign TLS, h2": "mtls requests",
			},
			tcp: {
				"plain HTTP/1.1": "reset", "plain h2c": "reset", "plain bytes": "reset",
				"mesh TLS, HTTP": "mtls bytes", "mesh TLS, bytes": "mtls bytes", "mesh TLS, old peer": "mtls bytes",
				"foreign TLS": "mtls bytes", "foreign TLS, h2": "mtls bytes",
			},
			auto: {
				"plain HTTP/1.1": "reset", "plain h2c": "reset", "plain bytes": "reset",
				"mesh TLS, HTTP": "mtls requests", "mesh TLS, bytes": "mtls bytes", "mesh TLS, old peer": "mtls bytes",
				"foreign TLS": "mtls bytes", "foreign TLS, h2": "mtls bytes",
			},
		},
		mesh.MTLSDisable: {
			http: {
				"plain HTTP/1.1": "requests", "plain h2c": "requests", "plain bytes": "requests",
				"mesh TLS, HTTP": "requests", "mesh TLS, bytes": "requests", "mesh TLS, old peer": "requests",
				"foreign TLS": "requests", "foreign TLS, h2": "requests",
			},
			tcp: {
				"plain HTTP/1.1": "bytes", "plain h2c": "bytes", "plain bytes": "bytes",
				"mesh TLS, HTTP": "bytes", "mesh TLS, bytes": "bytes", "mesh TLS, old peer": "bytes",
				"foreign TLS": "bytes", "foreign TLS, h2": "bytes",
			},
			auto: {
				"plain HTTP/1.1": "requests", "plain h2c": "requests", "plain bytes": "bytes",
				"mesh TLS, HTTP": "bytes", "mesh TLS, bytes": "bytes", "mesh TLS, old peer": "bytes",
				"foreign TLS": "bytes", "foreign TLS, h2": "bytes",
			},
		},
	}

	// The mode of the other ports, and of the catch-all, must never matter.
	for _, rest := range []mesh.MTLSMode{mesh.MTLSPermissive, mesh.MTLSStrict, mesh.MTLSDisable} {
		for mode, protocols := range want {
			for protocol, callersWant := range protocols {
				service := &mesh.Service{Host: "a.b.svc.cluster.local"}
				l := inboundContext{families: families{v4: true}}.inboundListener([]inboundPort{
					{number: 8080, protocol: protocol, mode: mode, service: service},
					{number: 9090, protocol: mesh.ProtocolHTTP, mode: rest, service: service},
					{mode: rest},
				})
				for name, c := range callers {
					if mode == mesh.MTLSDisable {
						// The tls_inspector is off for such ports; only plaintext is recognised.
						if c.transport == transportTLS {
							c = caller{transport: transportRaw}
						}
					}
					if got := outcome(choose(l.FilterChains, 8080, c, false)); got != callersWant[name] {
						t.Errorf("%v port %q, others %v: %s gets %q, want %q", mode, protocol, rest, name, got, callersWant[name])
					}
				}
			}
			// A port that no Service names is treated like an undeclared one, in the workload's mode.
			l := inboundContext{families: families{v4: true}}.inboundListener([]inboundPort{{mode: mode}})
			for name, c := range callers {
				if mode == mesh.MTLSDisable && c.transport == transportTLS {
					c = caller{transport: transportRaw}
				}
				if got := outcome(choose(l.FilterChains, 7777, c, false)); got != want[mode][auto][name] {
					t.Errorf("%v, port without a service: %s gets %q, want %q", mode, name, got, want[mode][auto][name])
				}
			}
		}
	}
}

func TestTheProofIsAnsweredInEveryMode(t *testing.T) {
	for _, mode := range []mesh.MTLSMode{mesh.MTLSPermissive, mesh.MTLSStrict, mesh.MTLSDisable} {
		l := inboundContext{families: families{v4: true, v6: true}}.inboundListener([]inboundPort{
			{number: 8080, protocol: mesh.ProtocolHTTP, mode: mode, service: &mesh.Service{}}, {mode: mode},
		})
		plain := caller{transport: transportRaw}
		name := func(ch *listener.FilterChain) string {
			if ch == nil {
				return "reset"
			}
			return ch.Name
		}
		for _, c := range []struct {
			port    uint16
			fromPod bool
			want    string
		}{
			{portKubeletProbe, false, "kubelet-probe"},
			{portKubeletProbe, true, "kubelet-probe"},
			{portProof, true, "redirect-proof"},
			{portProof, false, "reset"},
			{portInbound, false, "virtualInbound-blackhole"},
			{portOutbound, false, "virtualInbound-blackhole"},
		} {
			if got := name(choose(l.FilterChains, c.port, plain, c.fromPod)); got != c.want {
				t.Errorf("mode %v, port %d, from the pod itself %v: %q, want %q", mode, c.port, c.fromPod, got, c.want)
			}
		}
	}
}
