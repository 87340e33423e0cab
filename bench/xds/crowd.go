package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/envoy"
)

// proxies is the process of the proxies.
type proxies struct {
	setup
	roots *x509.CertPool

	bytes, messages, last atomic.Int64 // last: Unix nanoseconds of the newest message
	mark                  atomic.Int64 // counts marks
	touched               atomic.Int64 // proxies that got something since the mark
	ready                 atomic.Int64
	failed                chan error
	hangUp                chan struct{} // closed: all connections end
	ended                 sync.WaitGroup

	mu       sync.Mutex
	versions []map[envoy.Type]map[string]string // by namespace: what a proxy has
}

// heard is what came since a mark.
type heard struct {
	Last            int64 // Unix nanoseconds
	Messages, Bytes int64
	Proxies         int64
}

func crowd(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	p := &proxies{roots: x509.NewCertPool(), failed: make(chan error, 1)}
	if err := json.Unmarshal(data, &p.setup); err != nil {
		return err
	}
	p.roots.AppendCertsFromPEM(p.Root)
	p.versions = make([]map[envoy.Type]map[string]string, p.Namespaces)
	one := p.proxy
	if p.Bytes > 0 {
		one = p.bare
	}
	return answer(func(verb string, _ []string) (any, error) {
		switch verb {
		case "connect":
			p.clear()
			p.ready.Store(0)
			p.hangUp = make(chan struct{})
			for i := range p.Sidecars {
				p.ended.Go(func() {
					if err := one(i, p.hangUp); err != nil {
						select {
						case p.failed <- err:
						default:
						}
					}
				})
			}
			return p.until(5*time.Minute, func() bool { return p.ready.Load() == int64(p.Sidecars) })
		case "disconnect":
			close(p.hangUp)
			p.ended.Wait()
			return heard{}, nil
		case "mark":
			p.clear()
			return heard{}, nil
		case "settle":
			// Everybody has got something, and then nothing came for a while.
			return p.until(2*time.Minute, func() bool {
				return p.touched.Load() == int64(p.Sidecars) && time.Now().UnixNano()-p.last.Load() > int64(400*time.Millisecond)
			})
		}
		return nil, fmt.Errorf("unknown verb %q", verb)
	})
}

func (p *proxies) clear() {
	p.bytes.Store(0)
	p.messages.Store(0)
	p.touched.Store(0)
	p.mark.Add(1)
}

func (p *proxies) until(patience time.Duration, done func() bool) (heard, error) {
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		h := heard{p.last.Load(), p.messages.Load(), p.bytes.Load(), p.touched.Load()}
		if done() {
			return h, nil
		}
		select {
		case err := <-p.failed:
			return h, err
		case <-deadline:
			return h, fmt.Errorf("after %s %d of %d proxies are connected, and %d got something; %d messages", patience, p.ready.Load(), p.Sidecars, h.Proxies, h.Messages)
		case <-tick.C:
		}
	}
}

// got counts a message.
func (p *proxies) got(size int, mark *int64) {
	p.bytes.Add(int64(size))
	p.messages.Add(1)
	p.last.Store(time.Now().UnixNano())
	if m := p.mark.Load(); *mark != m {
		*mark = m
		p.touched.Add(1)
	}
}

// message is as much of a response as a lean proxy needs.
type message struct {
	size           int
	typeURL        string
	nonce, version string
	resources      map[string]string // name -> version; nil: not wanted
}

// lean decodes little of a response.
type lean struct{ proto encoding.CodecV2 }

func (lean) Name() string                             { return "proto" }
func (l lean) Marshal(v any) (mem.BufferSlice, error) { return l.proto.Marshal(v) }
func (l lean) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*message)
	if !ok {
		return l.proto.Unmarshal(data, v)
	}
	m.size = data.Len()
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	return eachField(buffer.ReadOnlyData(), func(number protowire.Number, v []byte) error {
		switch number {
		case 1:
			m.version = string(v) // sotw
		case 2:
			if m.resources == nil {
				return nil
			}
			var name, version string
			err := eachField(v, func(n protowire.Number, v []byte) error {
				switch n {
				case 1:
					version = string(v)
				case 3:
					name = string(v)
				}
				return nil
			})
			m.resources[name] = version
			return err
		case 4:
			m.typeURL = string(v)
		case 5:
			m.nonce = string(v)
		}
		return nil
	})
}

func eachField(b []byte, f func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("malformed response")
		}
		m := protowire.ConsumeFieldValue(number, kind, b[n:])
		if m < 0 {
			return fmt.Errorf("malformed response")
		}
		if kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b[n:])
			if err := f(number, v); err != nil {
				return err
			}
		}
		b = b[n+m:]
	}
	return nil
}

// proxy does what Envoy does: clusters, secrets, endpoints, listeners, routes; then it confirms what comes. When it connects again it tells
// what it has.
func (p *proxies) proxy(i int, hangUp <-chan struct{}) error {
	secure := insecure.NewCredentials()
	if p.TLS {
		secure = credentials.NewTLS(&tls.Config{RootCAs: p.roots, ServerName: "localhost"})
	}
	conn, err := grpc.NewClient("passthrough:///"+p.Address, grpc.WithTransportCredentials(secure),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(lean{encoding.GetCodecV2("proto")}), grpc.MaxCallRecvMsgSize(1<<30)),
		grpc.WithStaticStreamWindowSize(16<<20), grpc.WithStaticConnWindowSize(24<<20)) // Envoy's
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-hangUp:
			cancel()
		case <-ctx.Done():
		}
	}()
	if p.TLS {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+p.Tokens[i])
	}
	err = p.talk(ctx, conn, i)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

var order = []envoy.Type{envoy.Cluster, envoy.Secret, envoy.Endpoints, envoy.Listener, envoy.Route}

func (p *proxies) talk(ctx context.Context, conn *grpc.ClientConn, i int) error {
	delta := p.Protocol == "delta"
	method := discovery.AggregatedDiscoveryService_StreamAggregatedResources_FullMethodName
	if delta {
		method = discovery.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	node := &core.Node{Id: fmt.Sprintf("sidecar~10.0.0.1~client-%d.%s~%s.svc.cluster.local", i, p.namespace(i), p.namespace(i))}
	names := map[envoy.Type][]string{envoy.Secret: {"ROOTCA", "default"}, envoy.Endpoints: p.setup.Endpoints, envoy.Route: p.Routes}
	p.mu.Lock()
	has := p.versions[i%p.Namespaces]
	learn := has == nil && delta && i < p.Namespaces
	p.mu.Unlock()
	learned := map[envoy.Type]map[string]string{}
	var mark int64
	for _, t := range order {
		if t == envoy.Secret && !p.TLS {
			continue
		}
		known := has[t]
		if delta {
			r := &discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: t.TypeURL(), ResourceNamesSubscribe: names[t], InitialResourceVersions: known}
			err = stream.SendMsg(r)
		} else {
			err = stream.SendMsg(&discovery.DiscoveryRequest{Node: node, TypeUrl: t.TypeURL(), ResourceNames: names[t]})
		}
		if err != nil {
			return err
		}
		node = nil
		if len(known) > 0 && t != envoy.Secret {
			continue // there may be nothing to say
		}
		m := &message{}
		if learn {
			m.resources = map[string]string{}
			learned[t] = m.resources
		}
		if err := p.receive(stream, m, &mark); err != nil {
			return err
		}
	}
	if learn {
		p.mu.Lock()
		delete(learned, envoy.Secret)
		p.versions[i%p.Namespaces] = learned
		p.mu.Unlock()
	}
	p.ready.Add(1)
	for {
		if err := p.receive(stream, &message{}, &mark); err != nil {
			return err
		}
	}
}

// receive takes and confirms one response.
func (p *proxies) receive(stream grpc.ClientStream, m *message, mark *int64) error {
	if err := stream.RecvMsg(m); err != nil {
		return err
	}
	p.got(m.size, mark)
	if p.Protocol == "delta" {
		return stream.SendMsg(&discovery.DeltaDiscoveryRequest{TypeUrl: m.typeURL, ResponseNonce: m.nonce})
	}
	r := &discovery.DiscoveryRequest{TypeUrl: m.typeURL, ResponseNonce: m.nonce, VersionInfo: m.version}
	switch {
	case strings.HasSuffix(m.typeURL, "ClusterLoadAssignment"):
		r.ResourceNames = p.setup.Endpoints
	case strings.HasSuffix(m.typeURL, "RouteConfiguration"):
		r.ResourceNames = p.Routes
	case strings.HasSuffix(m.typeURL, "Secret"):
		r.ResourceNames = []string{"ROOTCA", "default"}
	}
	return stream.SendMsg(r)
}

// bare is a connection without any protocol: what comes is read, and answered in answerSize bytes.
func (p *proxies) bare(i int, hangUp <-chan struct{}) error {
	c, err := net.Dial("tcp", p.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	go func() { <-hangUp; c.Close() }()
	buffer, reply := make([]byte, 64<<10), make([]byte, answerSize)
	total, mark := 0, int64(0)
	for want := p.Bytes; ; want = 0 {
		for first := true; want > 0 || first; first = false {
			n, err := c.Read(buffer)
			if err != nil {
				return nil
			}
			total += n
			want -= n
		}
		p.got(total, &mark)
		total = 0
		if _, err := c.Write(reply); err != nil {
			return nil
		}
		if p.Bytes > 0 {
			p.ready.Add(1)
		}
	}
}
