package xds

import (
	"unsafe"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that is used for all other messages
	"google.golang.org/grpc/mem"
)

// frame is a response, encoded already: its parts are shared with other streams
// and are only put in a row here. A slow proxy therefore holds no copy of what it
// has not read yet.
type frame struct {
	parts mem.BufferSlice
	info  *response
}

// codec passes frames through, and leaves requests as they are: they are read when it is their turn, without protobuf objects.
// All other messages, those of further services on the same port, are ordinary ones.
type codec struct{ proto encoding.CodecV2 }

func newCodec() codec { return codec{proto: encoding.GetCodecV2("proto")} }

func (codec) Name() string { return "proto" }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return f.parts, nil
	}
	return c.proto.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*request)
	if !ok {
		return c.proto.Unmarshal(data, v)
	}
	// Materialize copies, and nobody changes the copy: it can be a string as it is. Requests of proxies that connect again
	// are some 100 KB long.
	b := data.Materialize()
	r.unread = unsafe.String(unsafe.SliceData(b), len(b))
	return nil
}
