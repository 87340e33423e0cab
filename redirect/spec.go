package redirect

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// Annotation is the pod annotation that carries an encoded Spec. Its presence on a pod means "redirect this pod": the
// injector writes it, the container runtime hands it to the CNI plugin, and the plugin needs to ask nobody.
const Annotation = "weft.dev/redirect"

// Ports of the sidecar that the rules know about (Istio's numbers, plus two of our own for the redirect proof).
const (
	PortOutbound     = 15001 // Envoy's virtualOutbound listener
	PortInbound      = 15006 // Envoy's virtualInbound listener
	PortMetrics      = 15020 // merged metrics and app probes, never captured
	PortHealth       = 15021 // health for users and load balancers, never captured
	PortDNS          = 15053 // DNS proxy, UDP and TCP, on loopback
	PortEnvoyMetrics = 15090 // Envoy's own metrics, never captured
	PortProofLoop    = 15098 // Envoy's check of its own outbound rules, over lo; always captured
	PortProof        = 15099 // kubelet's redirect proof; always captured, whatever the lists say
)

// ProxyUID and ProxyGID are the user and group that Istio gives to its proxy, and ours too.
const (
	ProxyUID = 1337
	ProxyGID = 1337
)

// Mode is how packets are brought to the sidecar (Istio API: ProxyConfig.InboundInterceptionMode).
type Mode string

const (
	// Redirect rewrites the destination (NAT); the app sees connections from loopback.
	Redirect Mode = "REDIRECT"
	// TProxy captures inbound connections without rewriting them, so that the app sees the client's address. The proxy
	// then needs NET_RAW; outbound connections are captured by NAT as in Redirect.
	TProxy Mode = "TPROXY"
	// None captures nothing: applying such a Spec removes whatever an earlier one left.
	None Mode = "NONE"
)

// Spec is everything that decides which connections of a pod go through its sidecar. The zero value captures nothing and
// is not valid; start from Default. Lists have no order and no duplicates once they come from Decode or FromAnnotations.
type Spec struct {
	Mode Mode `json:"mode"`

	// IncludeInboundPorts are the destination ports of inbound TCP connections that go to PortInbound.
	IncludeInboundPorts Ports `json:"includeInboundPorts"`
	// ExcludeInboundPorts go straight to the app. As in Istio they count only when IncludeInboundPorts is all ports.
	ExcludeInboundPorts []uint16 `json:"excludeInboundPorts,omitempty"`

	// IncludeOutboundCIDRs are the destinations of outbound TCP connections that go to PortOutbound.
	IncludeOutboundCIDRs CIDRs `json:"includeOutboundCIDRs"`
	// ExcludeOutboundCIDRs win over everything that is included.
	ExcludeOutboundCIDRs []netip.Prefix `json:"excludeOutboundCIDRs,omitempty"`
	// IncludeOutboundPorts are captured wherever they go, also outside of IncludeOutboundCIDRs.
	IncludeOutboundPorts []uint16 `json:"includeOutboundPorts,omitempty"`
	// ExcludeOutboundPorts win over everything that is included.
	ExcludeOutboundPorts []uint16 `json:"excludeOutboundPorts,omitempty"`

	// ExcludeInterfaces are left alone in both directions. A trailing "+" or "*" matches any rest of a name.
	ExcludeInterfaces []string `json:"excludeInterfaces,omitempty"`
	// RerouteInterfaces belong to something inside the pod (a virtual machine's tap): what arrives on them is treated as
	// the pod's outbound traffic.
	RerouteInterfaces []string `json:"rerouteInterfaces,omitempty"`

	// ProxyUIDs and ProxyGIDs own the proxy's sockets. Their connections are never captured as outbound (that would be a
	// loop), and those to the pod's own address are captured as inbound. A socket matches by either.
	ProxyUIDs []uint32 `json:"proxyUIDs"`
	ProxyGIDs []uint32 `json:"proxyGIDs"`
	// ExcludeUIDs and ExcludeGIDs are further owners whose outbound connections are left alone.
	ExcludeUIDs []uint32 `json:"excludeUIDs,omitempty"`
	ExcludeGIDs []uint32 `json:"excludeGIDs,omitempty"`

	// DNS sends the pod's queries (UDP and TCP port 53, to any resolver) to PortDNS on loopback.
	DNS bool `json:"dns,omitempty"`
	// DropInvalid drops inbound packets that connection tracking calls invalid, which would otherwise reach the pod
	// without translation and make its kernel reset good connections (Istio: INVALID_DROP).
	DropInvalid bool `json:"dropInvalid,omitempty"`

	// Gate is the port on which the proxy tells about its health, if kubelet's HTTP hook after the proxy's start holds the pod's other
	// containers back; 0 if not. The injector sets it. With it nobody is refused at PortProof: while nothing listens on PortInbound, kubelet
	// gets no answer and tries again, and who listens on PortProof inside the pod (the node agent does) is given what arrives there.
	Gate uint16 `json:"gate,omitempty"`

	// IPv4 and IPv6 say for which families there are rules. Both are on by default: rules of a family that a pod does not
	// have cost nothing, while a missing family would be a hole.
	IPv4 bool `json:"ipv4"`
	IPv6 bool `json:"ipv6"`
}

// Default captures all inbound ports but the sidecar's own, and all outbound TCP, by REDIRECT, for both families.
func Default() Spec {
	return Spec{
		Mode:                 Redirect,
		IncludeInboundPorts:  AllPorts(),
		IncludeOutboundCIDRs: AllCIDRs(),
		ProxyUIDs:            []uint32{ProxyUID},
		ProxyGIDs:            []uint32{ProxyGID},
		IPv4:                 true,
		IPv6:                 true,
	}
}

// Ports is every port or a list of them; the zero value is no port. In JSON it is "*" or an array of numbers.
type Ports struct {
	All  bool
	List []uint16
}

// AllPorts is every port.
func AllPorts() Ports { return Ports{All: true} }

// OnlyPorts is the ports given, or none.
func OnlyPorts(list ...uint16) Ports { return Ports{List: list} }

// MarshalJSON writes "*" or an array, never null.
func (p Ports) MarshalJSON() ([]byte, error) { return marshalChoice(p.All, p.List) }

// UnmarshalJSON reads what MarshalJSON writes.
func (p *Ports) UnmarshalJSON(b []byte) error {
	all, list, err := unmarshalChoice[uint16](b)
	*p = Ports{All: all, List: list}
	return err
}

// CIDRs is every address or a list of ranges; the zero value is no address. In JSON it is "*" or an array of strings.
type CIDRs struct {
	All  bool
	List []netip.Prefix
}

// AllCIDRs is every address.
func AllCIDRs() CIDRs { return CIDRs{All: true} }

// OnlyCIDRs is the ranges given, or none.
func OnlyCIDRs(list ...netip.Prefix) CIDRs { return CIDRs{List: list} }

// MarshalJSON writes "*" or an array, never null.
func (c CIDRs) MarshalJSON() ([]byte, error) { return marshalChoice(c.All, c.List) }

// UnmarshalJSON reads what MarshalJSON writes.
func (c *CIDRs) UnmarshalJSON(b []byte) error {
	all, list, err := unmarshalChoice[netip.Prefix](b)
	*c = CIDRs{All: all, List: list}
	return err
}

func marshalChoice[T any](all bool, list []T) ([]byte, error) {
	if all {
		return []byte(`"*"`), nil
	}
	if list == nil {
		list = []T{}
	}
	return json.Marshal(list)
}

func unmarshalChoice[T any](b []byte) (all bool, list []T, err error) {
	if string(b) == `"*"` {
		return true, nil, nil
	}
	if len(b) == 0 || b[0] != '[' {
		return false, nil, fmt.Errorf(`want "*" or an array, not %s`, b)
	}
	err = json.Unmarshal(b, &list)
	return false, list, err
}

// Encode writes the Spec as one line of JSON, the same bytes for the same Spec.
func (s Spec) Encode() string {
	b, err := json.Marshal(s.normalized())
	if err != nil {
		// Only netip.Prefix can refuse, and it never does.
		return ""
	}
	return string(b)
}

// Decode reads what Encode wrote, and what a person may write by hand: a field that is left out has Default's value. Unknown
// fields, trailing data and values that Validate refuses are errors, because guessing would leave traffic uncaptured.
func Decode(text string) (Spec, error) {
	if t := strings.TrimSpace(text); t != "" && t[0] != '{' {
		return Spec{}, fmt.Errorf("annotation %s: value %s: want a JSON object", Annotation, quote(text))
	}
	s := Default()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return Spec{}, fmt.Errorf("annotation %s: value %s: %w", Annotation, quote(text), explainJSON(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Spec{}, fmt.Errorf("annotation %s: value %s: text after the JSON object", Annotation, quote(text))
	}
	if err := s.Validate(); err != nil {
		return Spec{}, fmt.Errorf("annotation %s: value %s: %w", Annotation, quote(text), err)
	}
	return s.normalized(), nil
}

// explainJSON adds the remedy for the errors that a version difference causes.
func explainJSON(err error) error {
	switch {
	case strings.Contains(err.Error(), "unknown field"):
		return fmt.Errorf("%w (a misspelling, or the injector is newer than the CNI plugin of this node: upgrade weft-cni)",
			trimJSON(err))
	case errors.Is(err, io.EOF):
		return errors.New("empty, want a JSON object")
	}
	return trimJSON(err)
}

func trimJSON(err error) error {
	if text, ok := strings.CutPrefix(err.Error(), "json: "); ok {
		return errors.New(text)
	}
	return err
}

// quote shows a value in an error, shortened: an annotation may be 256 KiB long, and kubelet shows events of 1 KiB.
func quote(text string) string {
	const most = 120
	if len(text) > most {
		return fmt.Sprintf("%q...", strings.ToValidUTF8(text[:most], ""))
	}
	return fmt.Sprintf("%q", text)
}

// Validate says what is wrong with the Spec: it names the JSON field and the value at fault.
func (s Spec) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("field %s: %s", field, fmt.Sprintf(format, args...)))
	}
	switch s.Mode {
	case Redirect, TProxy, None:
	default:
		bad("mode", "%s is not an interception mode, want %s, %s or %s", quote(string(s.Mode)), Redirect, TProxy, None)
	}
	for _, l := range []struct {
		field string
		ports []uint16
	}{
		{"includeInboundPorts", s.IncludeInboundPorts.List},
		{"excludeInboundPorts", s.ExcludeInboundPorts},
		{"includeOutboundPorts", s.IncludeOutboundPorts},
		{"excludeOutboundPorts", s.ExcludeOutboundPorts},
	} {
		if slices.Contains(l.ports, 0) {
			bad(l.field, "0 is not a port, want 1 to 65535")
		}
	}
	if s.IncludeInboundPorts.All && len(s.IncludeInboundPorts.List) > 0 {
		bad("includeInboundPorts", "all ports and a list at once")
	}
	if s.IncludeOutboundCIDRs.All && len(s.IncludeOutboundCIDRs.List) > 0 {
		bad("includeOutboundCIDRs", "all addresses and a list at once")
	}
	for _, l := range []struct {
		field string
		cidrs []netip.Prefix
	}{
		{"includeOutboundCIDRs", s.IncludeOutboundCIDRs.List},
		{"excludeOutboundCIDRs", s.ExcludeOutboundCIDRs},
	} {
		for _, c := range l.cidrs {
			if err := checkCIDR(c); err != nil {
				bad(l.field, "%v", err)
			}
		}
	}
	for _, l := range []struct {
		field string
		names []string
	}{
		{"excludeInterfaces", s.ExcludeInterfaces},
		{"rerouteInterfaces", s.RerouteInterfaces},
	} {
		for _, n := range l.names {
			if err := checkInterface(n); err != nil {
				bad(l.field, "%v", err)
			}
		}
	}
	for _, n := range s.RerouteInterfaces {
		if slices.Contains(s.ExcludeInterfaces, n) {
			bad("rerouteInterfaces", "interface %q is also in excludeInterfaces; remove it from one of them", n)
		}
	}
	for _, l := range []struct {
		field string
		ids   []uint32
	}{
		{"proxyUIDs", s.ProxyUIDs}, {"proxyGIDs", s.ProxyGIDs},
		{"excludeUIDs", s.ExcludeUIDs}, {"excludeGIDs", s.ExcludeGIDs},
	} {
		if slices.Contains(l.ids, ^uint32(0)) {
			bad(l.field, "4294967295 is not a valid ID on Linux")
		}
	}
	if slices.Contains([]uint16{PortOutbound, PortInbound, PortDNS, PortProofLoop, PortProof}, s.Gate) {
		bad("gate", "%d is where the rules lead traffic to or from, so the proxy's health cannot be there; want the proxy's health port, such as %d, or 0", s.Gate, PortHealth)
	}
	if s.Mode == Redirect || s.Mode == TProxy {
		if len(s.ProxyUIDs)+len(s.ProxyGIDs) == 0 {
			bad("proxyUIDs", "empty, and proxyGIDs too: without the proxy's owner its own connections would be sent back to it for ever")
		}
		if slices.Contains(s.ProxyUIDs, 0) {
			bad("proxyUIDs", "0 would leave the connections of every root process uncaptured; run the proxy as another user, or name it by proxyGIDs only")
		}
		if slices.Contains(s.ProxyGIDs, 0) {
			bad("proxyGIDs", "0 would leave the connections of every process of root's group uncaptured; run the proxy in another group, or name it by proxyUIDs only")
		}
		if !s.IPv4 && !s.IPv6 {
			bad("ipv4", "false, and ipv6 too: nothing would be captured; use mode %s if that is wanted", None)
		}
	}
	return errors.Join(errs...)
}

// Families of errors that the annotations and the JSON share.

func checkCIDR(p netip.Prefix) error {
	if !p.IsValid() {
		return fmt.Errorf("%q is not a CIDR range such as 10.0.0.0/8 or fd00::/8", p)
	}
	if p.Addr().Is4In6() {
		return fmt.Errorf("%s is an IPv4 range written as IPv6; write it as IPv4", p)
	}
	return nil
}

// checkInterface: a Linux interface name is 1 to 15 bytes without slash or space; "." and ".." are refused by the kernel.
func checkInterface(name string) error {
	stem, wild := interfaceStem(name)
	switch {
	case name == "":
		return errors.New("an interface name is empty")
	case stem == "" && wild:
		return fmt.Errorf("%q matches every interface; use mode %s if nothing shall be captured", name, None)
	case len(stem) > 15:
		return fmt.Errorf("interface %q is longer than 15 characters", name)
	case stem == "." || stem == "..":
		return fmt.Errorf("%q is not an interface name", name)
	}
	for _, c := range []byte(stem) {
		if c <= ' ' || c > '~' || bytes.IndexByte([]byte(`/:"'\*+,{}`), c) >= 0 {
			return fmt.Errorf("interface %q contains %q", name, c)
		}
	}
	return nil
}

// interfaceStem takes the wildcard off an interface name.
func interfaceStem(name string) (stem string, wild bool) {
	if s, ok := strings.CutSuffix(name, "+"); ok {
		return s, true
	}
	return strings.CutSuffix(name, "*")
}

// normalized gives the same Spec with sorted lists, without duplicates and without ranges that lie in another one, so that
// equal meanings have equal bytes and rules. It shares no memory with s.
func (s Spec) normalized() Spec {
	s.IncludeInboundPorts.List = sorted(s.IncludeInboundPorts.List)
	s.ExcludeInboundPorts = sorted(s.ExcludeInboundPorts)
	s.IncludeOutboundCIDRs.List = disjoint(s.IncludeOutboundCIDRs.List)
	s.ExcludeOutboundCIDRs = disjoint(s.ExcludeOutboundCIDRs)
	s.IncludeOutboundPorts = sorted(s.IncludeOutboundPorts)
	s.ExcludeOutboundPorts = sorted(s.ExcludeOutboundPorts)
	s.ExcludeInterfaces = sorted(s.ExcludeInterfaces)
	s.RerouteInterfaces = sorted(s.RerouteInterfaces)
	s.ProxyUIDs = sorted(s.ProxyUIDs)
	s.ProxyGIDs = sorted(s.ProxyGIDs)
	s.ExcludeUIDs = sorted(s.ExcludeUIDs)
	s.ExcludeGIDs = sorted(s.ExcludeGIDs)
	return s
}

func sorted[T interface{ ~uint16 | ~uint32 | ~string }](in []T) []T {
	if len(in) == 0 {
		return nil
	}
	out := slices.Clone(in)
	slices.Sort(out)
	return slices.Compact(out)
}

// disjoint masks, sorts and drops what lies inside a wider range. Prefixes either nest or are apart, so one pass is enough.
func disjoint(in []netip.Prefix) []netip.Prefix {
	if len(in) == 0 {
		return nil
	}
	all := make([]netip.Prefix, len(in))
	for i, p := range in {
		all[i] = p.Masked()
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	out := all[:1]
	for _, p := range all[1:] {
		if last := out[len(out)-1]; last.Overlaps(p) && last.Bits() <= p.Bits() {
			continue
		}
		out = append(out, p)
	}
	return out
}
