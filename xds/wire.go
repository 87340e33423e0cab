package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// request is a DeltaDiscoveryRequest or a DiscoveryRequest, as far as the server
// looks at it. Strings are parts of one copy of the message: what outlives the
// request is cloned.
type request struct {
	delta       bool // which of the two messages it is; set before decoding
	node        *node
	typeURL     string
	subscribe   []string          // DiscoveryRequest: resource_names
	unsubscribe []string          // delta only
	initial     map[string]string // delta only: name -> version that the proxy has
	version     string            // state of the world only
	nonce       string
	failed      bool // error_detail is there: the response was rejected
	failure     string
	size        int // bytes of the message

	unread string // the message, before read
}

// node is what a proxy says about itself. Nothing in it is trusted.
type node struct {
	id        string
	cluster   string
	version   string // "1.40.0"
	addresses []netip.Addr
	metadata  map[string]string // its string values
}

var errWire = errors.New("malformed discovery request")

// Field numbers of envoy.service.discovery.v3.
const (
	deltaNodeField, deltaTypeField, deltaSubscribeField, deltaUnsubscribeField, deltaInitialField, deltaNonceField, deltaErrorField = 1, 2, 3, 4, 5, 6, 7
	worldVersionField, worldNodeField, worldNamesField, worldTypeField, worldNonceField, worldErrorField                            = 1, 2, 3, 4, 5, 6

	responseVersion   = 1 // DiscoveryResponse only
	responseResources = 2
	responseType      = 4
	responseNonce     = 5
	responseRemoved   = 6 // DeltaDiscoveryResponse only

	resourceVersion, resourceBody, resourceName, resourceAliases = 1, 2, 3, 4 // Resource
)

// read decodes what the codec took from the wire. The error is a gRPC status.
func (r *request) read() error {
	data := r.unread
	if err := r.decode(data); err != nil {
		return status.Errorf(codes.InvalidArgument, "xds: %v", err)
	}
	return nil
}

// decode reads one message. Unknown fields are skipped, as protobuf asks.
func (r *request) decode(data string) error {
	*r = request{delta: r.delta, size: len(data)}
	names := protowire.Number(worldNamesField)
	if r.delta {
		names = deltaSubscribeField
	}
	// A long message is mostly names.
	if len(data) > 1<<10 {
		n := 0
		if err := fields(data, func(number protowire.Number, _ string) error {
			if number == names {
				n++
			}
			return nil
		}); err != nil {
			return err
		}
		r.subscribe = make([]string, 0, n)
	}
	return fields(data, func(n protowire.Number, v string) error {
		if r.delta {
			return r.deltaField(n, v)
		}
		return r.worldField(n, v)
	})
}

func (r *request) deltaField(n protowire.Number, v string) (err error) {
	switch n {
	case deltaNodeField:
		r.node, err = decodeNode(v)
	case deltaTypeField:
		r.typeURL = v
	case deltaSubscribeField:
		r.subscribe = append(r.subscribe, v)
	case deltaUnsubscribeField:
		r.unsubscribe = append(r.unsubscribe, v)
	case deltaInitialField:
		var name, version string
		err = fields(v, func(n protowire.Number, v string) error {
			switch n {
			case 1:
				name = v
			case 2:
				version = v
			}
			return nil
		})
		if r.initial == nil {
			// The entries are of like size and most of the message. The limit is for those who would make us reserve more than they send.
			r.initial = make(map[string]string, min(r.size/(len(v)+2), 1<<12))
		}
		r.initial[name] = version
	case deltaNonceField:
		r.nonce = v
	case deltaErrorField:
		r.failed = true
		r.failure, err = decodeStatus(v)
	}
	return err
}

func (r *request) worldField(n protowire.Number, v string) (err error) {
	switch n {
	case worldVersionField:
		r.version = v
	case worldNodeField:
		r.node, err = decodeNode(v)
	case worldNamesField:
		r.subscribe = append(r.subscribe, v)
	case worldTypeField:
		r.typeURL = v
	case worldNonceField:
		r.nonce = v
	case worldErrorField:
		r.failed = true
		r.failure, err = decodeStatus(v)
	}
	return err
}

// fields calls f for each length-delimited field of a message.
func fields(data string, f func(protowire.Number, string) error) error {
	for len(data) > 0 {
		// Nearly all fields have a number below 16 and a length below 128.
		if len(data) > 1 && data[0]&0x87 == byte(protowire.BytesType) && data[0] >= 8 && data[1] < 0x80 && int(data[1]) <= len(data)-2 {
			number, value := protowire.Number(data[0]>>3), data[2:2+int(data[1])]
			data = data[2+int(data[1]):]
			if err := f(number, value); err != nil {
				return err
			}
			continue
		}
		// The package wants []byte; a tag and a length fit into 20 bytes, so only those are copied.
		head := []byte(data[:min(len(data), 20)])
		number, kind, n := protowire.ConsumeTag(head)
		if n < 0 {
			return errWire
		}
		if kind != protowire.BytesType {
			m := protowire.ConsumeFieldValue(number, kind, []byte(data[n:]))
			if m < 0 {
				return errWire
			}
			data = data[n+m:]
			continue
		}
		size, m := protowire.ConsumeVarint(head[n:])
		if m < 0 || size > uint64(len(data)-n-m) {
			return errWire
		}
		value := data[n+m : n+m+int(size)]
		data = data[n+m+int(size):]
		if err := f(number, value); err != nil {
			return err
		}
	}
	return nil
}

// decodeStatus reads the message of a google.rpc.Status.
func decodeStatus(data string) (message string, err error) {
	err = fields(data, func(n protowire.Number, v string) error {
		if n == 2 {
			message = strings.Clone(v)
		}
		return nil
	})
	return message, err
}

// decodeNode reads the few fields of envoy.config.core.v3.Node that matter; the
// list of extensions, some 40 KB of it, is skipped.
func decodeNode(data string) (*node, error) {
	n := new(node)
	err := fields(data, func(number protowire.Number, v string) error {
		switch number {
		case 1:
			n.id = strings.Clone(v)
		case 2:
			n.cluster = strings.Clone(v)
		case 3:
			var s structpb.Struct
			if err := proto.Unmarshal([]byte(v), &s); err != nil {
				return fmt.Errorf("node metadata: %w", err)
			}
			n.metadata = make(map[string]string)
			for k, v := range s.GetFields() {
				if s, ok := v.GetKind().(*structpb.Value_StringValue); ok {
					n.metadata[k] = s.StringValue
				}
			}
		case 7: // user_agent_version, from clients that are not Envoy
			n.version = strings.Clone(v)
		case 8:
			n.version = decodeBuildVersion(v)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for ip := range strings.SplitSeq(n.metadata["INSTANCE_IPS"], ",") {
		if a, err := netip.ParseAddr(strings.TrimSpace(ip)); err == nil && a.Zone() == "" {
			n.addresses = append(n.addresses, a.Unmap())
		}
	}
	return n, nil
}

// decodeBuildVersion gives "1.40.0" for an envoy.config.core.v3.BuildVersion.
func decodeBuildVersion(data string) string {
	var semantic [3]uint64
	fields(data, func(n protowire.Number, v string) error {
		b := []byte(v)
		for n == 1 && len(b) > 0 {
			number, kind, m := protowire.ConsumeTag(b)
			if m < 0 || kind != protowire.VarintType || number < 1 || number > 3 {
				break
			}
			value, k := protowire.ConsumeVarint(b[m:])
			if k < 0 {
				break
			}
			semantic[number-1] = value
			b = b[m+k:]
		}
		return nil
	})
	return fmt.Sprintf("%d.%d.%d", semantic[0], semantic[1], semantic[2])
}

// appendString appends a length-delimited field.
func appendString(b []byte, number protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), s)
}

func formatNonce(n uint64) string { return strconv.FormatUint(n, 36) }
