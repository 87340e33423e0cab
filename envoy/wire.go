package envoy

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// Messages of which there are thousands are written here without protobuf objects: most of those were maps in maps, metadata, and making and
// marshaling them was two thirds of what all bundles cost. They append fields to a buffer; the goldens, and Envoy, read what comes out.

func appendText(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendMessage(b []byte, field protowire.Number, m []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), m)
}

func appendNumber(b []byte, field protowire.Number, n uint32) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), uint64(n))
}

// nest appends a message whose fields are appended by content.
func nest(b []byte, field protowire.Number, content func([]byte) []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	start := len(b)
	b = content(append(b, 0)) // most are shorter than 128 bytes: their length is one byte
	n := len(b) - start - 1
	if more := protowire.SizeVarint(uint64(n)) - 1; more > 0 {
		b = append(b, make([]byte, more)...)
		copy(b[start+1+more:], b[start+1:])
	}
	protowire.AppendVarint(b[:start], uint64(n))
	return b
}

// Field numbers of google.protobuf's maps, Struct and Value, of core.v3.Metadata and of the wrappers.
const (
	fieldKey            = 1
	fieldValue          = 2
	fieldFilterMetadata = 1
	fieldStructFields   = 1
	fieldNumberValue    = 2
	fieldStringValue    = 3
	fieldBoolValue      = 4
	fieldStructValue    = 5
	fieldListValue      = 6
	fieldListValues     = 1
	fieldWrapped        = 1
)

// appendEntry appends an entry of a map from strings to messages. In metadata they are to be in the order of their keys, as protobuf's own are when
// it is asked to be deterministic.
func appendEntry(b []byte, field protowire.Number, key string, value func([]byte) []byte) []byte {
	return nest(b, field, func(b []byte) []byte {
		return nest(appendText(b, fieldKey, key), fieldValue, value)
	})
}

// appendStringField appends a field to a Struct.
func appendStringField(b []byte, key, value string) []byte {
	return appendEntry(b, fieldStructFields, key, func(b []byte) []byte { return appendText(b, fieldStringValue, value) })
}
