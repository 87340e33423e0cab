package mesh

import "strings"

// ProtocolOf decides what a Service port speaks (Istio: "Explicit protocol
// selection"): appProtocol when given, otherwise the port's name; the part before the first
// "-" counts ("http-web"). Neither known: the ports of well-known protocols in which the server
// speaks first are TCP, because sniffing would hold them up; for all others the
// answer is [ProtocolAuto]. transport is Kubernetes' protocol: TCP, UDP or SCTP; empty means TCP.
func ProtocolOf(number uint16, name string, appProtocol *string, transport string) Protocol {
	if transport != "" && transport != "TCP" {
		return ProtocolUDP
	}
	word := name
	if appProtocol != nil {
		word = *appProtocol
	}
	if p := ParseProtocol(word); p != ProtocolAuto {
		return p
	}
	switch number {
	case 25, 53, 3306, 27017: // SMTP, DNS, MySQL, MongoDB
		return ProtocolTCP
	}
	return ProtocolAuto
}

// ParseProtocol reads the protocol of a Gateway or ServiceEntry port ("HTTP", "HTTPS", "GRPC",
// "MONGO"), of an appProtocol ("kubernetes.io/h2c") or of a port's name ("grpc-web-ui").
// Case does not matter. Unknown words mean [ProtocolAuto].
func ParseProtocol(s string) Protocol {
	s = strings.ToLower(s)
	if p, ok := protocolWords[s]; ok {
		return p
	}
	word, _, _ := strings.Cut(s, "-")
	return protocolWords[word]
}

// protocolWords are the names that Istio lists under protocol selection and the values of
// appProtocol that Kubernetes standardised (KEP-3726). The databases are opaque bytes:
// Istio's own filters for them are off by default.
var protocolWords = map[string]Protocol{
	"http":  ProtocolHTTP,
	"http2": ProtocolHTTP2,
	"grpc":  ProtocolGRPC, // grpc-web too: the same routes, HTTP/1.1 or HTTP/2
	"https": ProtocolHTTPS,
	"tls":   ProtocolTLS,
	"tcp":   ProtocolTCP,
	"mongo": ProtocolTCP,
	"mysql": ProtocolTCP,
	"redis": ProtocolTCP,
	"udp":   ProtocolUDP,

	"kubernetes.io/h2c": ProtocolHTTP2,
	"kubernetes.io/ws":  ProtocolHTTP,
	"kubernetes.io/wss": ProtocolHTTPS,
}
