package envoy

import (
	"net/netip"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The small words of Envoy's API. Each returns one message and decides nothing.

// anyOf packs a message, deterministically.
func anyOf(m proto.Message) *anypb.Any {
	return &anypb.Any{
		TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()),
		Value:   marshal(m),
	}
}

func u32(v uint32) *wrapperspb.UInt32Value { return wrapperspb.UInt32(v) }
func yes() *wrapperspb.BoolValue           { return wrapperspb.Bool(true) }
func no() *wrapperspb.BoolValue            { return wrapperspb.Bool(false) }

// fromADS says that a resource comes over the stream it was named on.
func fromADS() *core.ConfigSource {
	return &core.ConfigSource{
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
		InitialFetchTimeout:   durationpb.New(0), // wait; a listener without its routes would answer 404
		ResourceApiVersion:    core.ApiVersion_V3,
	}
}

// tcpAddress is an IP address or DNS name with a port.
func tcpAddress(host string, port uint32) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address:       host,
		PortSpecifier: &core.SocketAddress_PortValue{PortValue: port},
	}}}
}

func ipAddress(a netip.Addr, port uint16) *core.Address {
	return tcpAddress(a.Unmap().String(), uint32(port))
}

// dualStackAny is `::` for both IP families on one socket.
func dualStackAny(port uint32) *core.Address {
	a := tcpAddress("::", port)
	a.GetSocketAddress().Ipv4Compat = true
	return a
}

func transportSocket(name string, config proto.Message) *core.TransportSocket {
	return &core.TransportSocket{Name: name, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: anyOf(config)}}
}

func networkFilter(name string, config proto.Message) *listener.Filter {
	return &listener.Filter{Name: name, ConfigType: &listener.Filter_TypedConfig{TypedConfig: anyOf(config)}}
}

// listenerFilter is switched off for connections to the given destination ports.
func listenerFilter(name string, config proto.Message, offFor []uint16) *listener.ListenerFilter {
	f := &listener.ListenerFilter{Name: name, ConfigType: &listener.ListenerFilter_TypedConfig{TypedConfig: anyOf(config)}}
	f.FilterDisabled = destinationPorts(offFor)
	return f
}

// destinationPorts matches connections to any of the ports; nil when there are none.
func destinationPorts(ports []uint16) *listener.ListenerFilterChainMatchPredicate {
	var rules []*listener.ListenerFilterChainMatchPredicate
	for _, p := range ports {
		rules = append(rules, &listener.ListenerFilterChainMatchPredicate{
			Rule: &listener.ListenerFilterChainMatchPredicate_DestinationPortRange{
				DestinationPortRange: &typev3.Int32Range{Start: int32(p), End: int32(p) + 1},
			},
		})
	}
	switch len(rules) {
	case 0:
		return nil
	case 1:
		return rules[0]
	}
	return &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_OrMatch{
		OrMatch: &listener.ListenerFilterChainMatchPredicate_MatchSet{Rules: rules},
	}}
}

// fraction is a percentage in millionths; values outside of 0 to 100 are clamped.
func fraction(p float64) *typev3.FractionalPercent {
	if p < 0 {
		p = 0
	}
	if p > 100 {
		p = 100
	}
	return &typev3.FractionalPercent{
		Numerator:   uint32(p*10_000 + 0.5),
		Denominator: typev3.FractionalPercent_MILLION,
	}
}

func runtimeFraction(p float64) *core.RuntimeFractionalPercent {
	return &core.RuntimeFractionalPercent{DefaultValue: fraction(p)}
}
