package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A stream is one gRPC stream on a connection of its own, as Envoy has. It is less than a client: one goroutine reads, and writes what
// the parser makes it say. Data is not copied, and there is no buffer for each connection where there is no TLS.
type stream struct {
	conn   net.Conn
	parser *parser

	head    []byte // of a frame, until it is complete
	frame   http2.FrameHeader
	left    int    // bytes of the frame that are still to come
	control []byte // content of a frame that is no data
	eaten   uint32 // bytes that the server does not know yet to be taken
	names   *hpack.Decoder
	trouble string // from headers

	out          []byte // requests that wait for the server's permission
	window, ours int64  // that permission: the connection's and the stream's
	initial      int64
}

// Envoy's windows; with those of HTTP/2's defaults the server would wait for the proxies all the time.
const (
	streamWindow = 16 << 20
	connWindow   = 24 << 20
	maxFrame     = 16 << 10
)

// open connects and begins a stream. roots is nil for plaintext.
func open(address, path, token string, roots *x509.CertPool, p *parser) (*stream, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if roots != nil {
		secure := tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: "localhost", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
		if err := secure.Handshake(); err != nil {
			conn.Close()
			return nil, err
		}
		conn, scheme = secure, "https"
	}
	s := &stream{conn: conn, parser: p, window: 65535, ours: 65535, initial: 65535}
	s.names = hpack.NewDecoder(4096, s.header)
	var b bytes.Buffer
	b.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&b, nil)
	var block bytes.Buffer
	h := hpack.NewEncoder(&block)
	fields := []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: scheme}, {Name: ":path", Value: path},
		{Name: ":authority", Value: "localhost"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}}
	if token != "" {
		fields = append(fields, hpack.HeaderField{Name: "authorization", Value: "Bearer " + token})
	}
	for _, field := range fields {
		err = errors.Join(err, h.WriteField(field))
	}
	err = errors.Join(err,
		f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow}),
		f.WriteWindowUpdate(0, connWindow-65535),
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}))
	if err == nil {
		_, err = conn.Write(b.Bytes())
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

// header notices how the stream ended.
func (s *stream) header(f hpack.HeaderField) {
	switch f.Name {
	case "grpc-message":
		s.trouble = f.Value
	case ":status":
		if f.Value != "200" {
			s.trouble = "HTTP status " + f.Value
		}
	}
}

// say puts one request into the stream, made of parts. It is written by flush.
func (s *stream) say(parts ...[]byte) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	s.out = binary.BigEndian.AppendUint32(append(s.out, 0), uint32(n))
	for _, p := range parts {
		s.out = append(s.out, p...)
	}
}

// flush writes as much as the server permits.
func (s *stream) flush() error {
	var b []byte
	for len(s.out) > 0 {
		n := min(int64(len(s.out)), s.window, s.ours, maxFrame)
		if n <= 0 {
			break
		}
		b = frameHead(b, int(n), http2.FrameData, 0, 1)
		b = append(b, s.out[:n]...)
		s.out = s.out[n:]
		s.window -= n
		s.ours -= n
	}
	if len(s.out) == 0 {
		s.out = nil
	}
	if s.eaten > streamWindow/4 {
		for _, id := range []uint32{0, 1} {
			b = frameHead(b, 4, http2.FrameWindowUpdate, 0, id)
			b = binary.BigEndian.AppendUint32(b, s.eaten)
		}
		s.eaten = 0
	}
	if len(b) == 0 {
		return nil
	}
	_, err := s.conn.Write(b)
	return err
}

func frameHead(b []byte, size int, t http2.FrameType, flags http2.Flags, id uint32) []byte {
	b = append(b, byte(size>>16), byte(size>>8), byte(size), byte(t), byte(flags))
	return binary.BigEndian.AppendUint32(b, id)
}

// run reads until the stream ends.
func (s *stream) run() error {
	if err := s.flush(); err != nil {
		return err
	}
	return readAll(s.conn, func(b []byte) error {
		if err := s.frames(b); err != nil {
			return err
		}
		return s.flush()
	})
}

func (s *stream) frames(b []byte) error {
	const size = 9
	for len(b) > 0 {
		if s.left == 0 {
			n := min(size-len(s.head), len(b))
			s.head = append(s.head, b[:n]...)
			b = b[n:]
			if len(s.head) < size {
				return nil
			}
			h := s.head
			s.frame = http2.FrameHeader{Length: uint32(h[0])<<16 | uint32(h[1])<<8 | uint32(h[2]), Type: http2.FrameType(h[3]), Flags: http2.Flags(h[4])}
			s.frame.StreamID = binary.BigEndian.Uint32(h[5:]) & (1<<31 - 1)
			s.left = int(s.frame.Length)
			s.head = s.head[:0]
			s.control = s.control[:0]
		}
		n := min(s.left, len(b))
		if s.frame.Type == http2.FrameData {
			// gRPC pads nothing.
			s.eaten += uint32(n)
			if err := s.parser.write(b[:n]); err != nil {
				return err
			}
		} else {
			s.control = append(s.control, b[:n]...)
		}
		s.left -= n
		b = b[n:]
		if s.left == 0 && s.frame.Type != http2.FrameData {
			if err := s.obey(); err != nil {
				return err
			}
		}
	}
	return nil
}

// obey acts on a frame that is no data.
func (s *stream) obey() error {
	switch s.frame.Type {
	case http2.FrameHeaders:
		if _, err := s.names.Write(s.control); err != nil {
			return err
		}
		if s.frame.Flags.Has(http2.FlagHeadersEndStream) {
			return fmt.Errorf("the server ended the stream: %s", s.trouble)
		}
	case http2.FrameSettings:
		if s.frame.Flags.Has(http2.FlagSettingsAck) {
			return nil
		}
		for b := s.control; len(b) >= 6; b = b[6:] {
			if http2.SettingID(binary.BigEndian.Uint16(b)) == http2.SettingInitialWindowSize {
				next := int64(binary.BigEndian.Uint32(b[2:]))
				s.ours += next - s.initial
				s.initial = next
			}
		}
		_, err := s.conn.Write(frameHead(nil, 0, http2.FrameSettings, http2.FlagSettingsAck, 0))
		return err
	case http2.FramePing:
		if s.frame.Flags.Has(http2.FlagPingAck) {
			return nil
		}
		_, err := s.conn.Write(append(frameHead(nil, 8, http2.FramePing, http2.FlagPingAck, 0), s.control...))
		return err
	case http2.FrameWindowUpdate:
		if len(s.control) < 4 {
			return errWire
		}
		n := int64(binary.BigEndian.Uint32(s.control) & (1<<31 - 1))
		if s.frame.StreamID == 0 {
			s.window += n
		} else {
			s.ours += n
		}
	case http2.FrameGoAway, http2.FrameRSTStream:
		return fmt.Errorf("the server ended the connection: %s %s", s.frame.Type, s.trouble)
	}
	return nil
}

// buffers are shared by all connections: as many are in use as there are processors.
var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// readAll gives what comes on a connection to take, until it ends or take fails.
func readAll(c net.Conn, take func([]byte) error) error {
	plain, ok := c.(*net.TCPConn)
	if !ok {
		own := make([]byte, maxFrame)
		for {
			n, err := c.Read(own)
			if err != nil {
				return err
			}
			if err := take(own[:n]); err != nil {
				return err
			}
		}
	}
	raw, err := plain.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	for failed == nil {
		err := raw.Read(func(fd uintptr) bool {
			b := buffers.Get().(*[]byte)
			defer buffers.Put(b)
			n, err := syscall.Read(int(fd), *b)
			switch {
			case err == syscall.EAGAIN:
				return false
			case err == syscall.EINTR:
			case err != nil:
				failed = err
			case n == 0:
				failed = io.EOF
			default:
				failed = take((*b)[:n])
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	return failed
}
