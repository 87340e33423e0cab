package xds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"sync/atomic"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/envoy"
)

// runProxies connects everybody and prints a line when the last one is done: "connected", then
// "EDS n" and "RDS n" for the n-th response of a type after that.
func runProxies(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s setup
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.Root)
	var connected atomic.Int32
	var pushes [envoy.NumTypes][1 << 16]atomic.Int32
	failed := make(chan error)
	for i, token := range s.Tokens {
		go func() {
			failed <- proxy(s, roots, i, token, func(t envoy.Type, n int) {
				switch {
				case n == 0:
					if connected.Add(1) == int32(len(s.Tokens)) {
						fmt.Println("connected")
					}
				case pushes[t][n].Add(1) == int32(len(s.Tokens)):
					fmt.Println(map[envoy.Type]string{envoy.Endpoints: "EDS", envoy.Route: "RDS", envoy.Cluster: "CDS", envoy.Listener: "LDS", envoy.Secret: "SDS"}[t], n)
				}
			})
		}()
	}
	return <-failed
}

// answer is as much of a response as a lean proxy needs.
type answer struct {
	typeURL, nonce string
}

// lean decodes nothing but type and nonce of a response.
type lean struct{ proto encoding.CodecV2 }

func (lean) Name() string                             { return "proto" }
func (l lean) Marshal(v any) (mem.BufferSlice, error) { return l.proto.Marshal(v) }
func (l lean) Unmarshal(data mem.BufferSlice, v any) error {
	a, ok := v.(*answer)
	if !ok {
		return l.proto.Unmarshal(data, v)
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	for b := buffer.ReadOnlyData(); len(b) > 0; {
		number, kind, n := protowire.ConsumeTag(b)
		m := protowire.ConsumeFieldValue(number, kind, b[n:])
		if n < 0 || m < 0 {
			return fmt.Errorf("malformed response")
		}
		if kind == protowire.BytesType && (number == 4 || number == 5) {
			v, _ := protowire.ConsumeBytes(b[n:])
			if number == 4 {
				a.typeURL = string(v)
			} else {
				a.nonce = string(v)
			}
		}
		b = b[n+m:]
	}
	return nil
}

// proxy does what Envoy does: clusters, endpoints, listeners, routes, secrets; then it confirms what comes.
func proxy(s setup, roots *x509.CertPool, i int, token string, got func(envoy.Type, int)) error {
	conn, err := grpc.NewClient("passthrough:///"+s.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "localhost"})),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(lean{encoding.GetCodecV2("proto")}), grpc.MaxCallRecvMsgSize(1<<30)),
		grpc.WithStaticStreamWindowSize(16<<20), grpc.WithStaticConnWindowSize(24<<20))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, discovery.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName)
	if err != nil {
		return err
	}
	order := []struct {
		t     envoy.Type
		names []string
	}{{envoy.Cluster, nil}, {envoy.Secret, []string{"ROOTCA", "default"}}, {envoy.Endpoints, s.Names}, {envoy.Listener, nil}, {envoy.Route, s.Routes}}
	for n, o := range order {
		r := &discovery.DeltaDiscoveryRequest{TypeUrl: o.t.TypeURL(), ResourceNamesSubscribe: o.names}
		if n == 0 {
			r.Node = &core.Node{Id: fmt.Sprintf("sidecar~10.1.0.1~client-%d.bench~bench.svc.cluster.local", i)}
		}
		if err := stream.SendMsg(r); err != nil {
			return err
		}
		if _, err := receive(stream); err != nil {
			return err
		}
	}
	got(0, 0)
	var counts [envoy.NumTypes]int
	for {
		t, err := receive(stream)
		if err != nil {
			return err
		}
		counts[t]++
		got(t, counts[t])
	}
}

// receive takes and confirms one response.
func receive(stream grpc.ClientStream) (envoy.Type, error) {
	var a answer
	if err := stream.RecvMsg(&a); err != nil {
		return 0, err
	}
	t, ok := envoy.TypeOf(a.typeURL)
	if !ok {
		return 0, fmt.Errorf("unknown type %q", a.typeURL)
	}
	return t, stream.SendMsg(&discovery.DeltaDiscoveryRequest{TypeUrl: a.typeURL, ResponseNonce: a.nonce})
}
