package mesh

import "testing"

// Istio, "Protocol selection": appProtocol wins over the port's name; names look like <protocol>[-<suffix>]; without either the
// protocol is detected; UDP is not proxied.
func TestProtocolIsThatOfAppProtocolOrThePortsName(t *testing.T) {
	for _, c := range []struct {
		number    uint16
		name, app string
		transport string
		want      Protocol
	}{
		{80, "http", "", "", ProtocolHTTP},
		{80, "http-web", "", "TCP", ProtocolHTTP},
		{80, "HTTP-web", "", "TCP", ProtocolHTTP},
		{80, "http2", "", "", ProtocolHTTP2},
		{80, "http2-x", "", "", ProtocolHTTP2},
		{80, "grpc", "", "", ProtocolGRPC},
		{80, "grpc-web", "", "", ProtocolGRPC},
		{80, "grpc-web-ui", "", "", ProtocolGRPC},
		{443, "https", "", "", ProtocolHTTPS},
		{443, "tls-x", "", "", ProtocolTLS},
		{80, "tcp", "", "", ProtocolTCP},
		{80, "mongo", "", "", ProtocolTCP},
		{80, "redis-cache", "", "", ProtocolTCP},
		{80, "httpx", "", "", ProtocolAuto},
		{80, "web-http", "", "", ProtocolAuto},
		{80, "", "", "", ProtocolAuto},
		{80, "tcp", "http", "", ProtocolHTTP},
		{80, "", "kubernetes.io/h2c", "", ProtocolHTTP2},
		{80, "", "kubernetes.io/ws", "", ProtocolHTTP},
		{80, "", "kubernetes.io/wss", "", ProtocolHTTPS},
		{80, "http", "example.com/custom", "", ProtocolAuto},
		{53, "dns", "", "UDP", ProtocolUDP},
		{80, "http", "", "SCTP", ProtocolUDP},
		{3306, "db", "", "", ProtocolTCP},
		{3306, "http", "", "", ProtocolHTTP},
		{27017, "", "", "", ProtocolTCP},
	} {
		var app *string
		if c.app != "" {
			app = &c.app
		}
		if got := ProtocolOf(c.number, c.name, app, c.transport); got != c.want {
			t.Errorf("port %d %q, appProtocol %q, %s: %q, want %q", c.number, c.name, c.app, c.transport, got, c.want)
		}
	}
}
