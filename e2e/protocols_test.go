package e2e

import (
	"fmt"
	"strings"
	"testing"
)

func TestS70EveryProtocolPassesTheMesh(t *testing.T) {
	ns := versions(t)
	for _, c := range []struct {
		name string
		args []string
		body string // contained in the answer
	}{
		{"HTTP/1.1", []string{"http://echo/"}, `"proto":"HTTP/1.1"`},
		{"HTTP/2 on a port named http", []string{"h2c://echo/"}, `"method":"GET"`}, // HTTP/1.1 between the sidecars, as in Istio
		{"HTTP/2 on a port named http2", []string{"h2c://echo:81/"}, `"proto":"HTTP/2.0"`},
		{"WebSocket", []string{"-d", "hello", "ws://echo/ws"}, " hello"},
		{"gRPC", []string{"grpc://echo:9000"}, "SERVING"},
		{"TCP, client first", []string{"-d", "hello", "tcp://echo:9001"}, " hello"},
		{"TCP, server first", []string{"-d", "hello", "banner://echo:9002"}, " ready"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rs := ns.Call(fromClient, append([]string{"-n", "20", "-timeout", "5s"}, c.args...)...)
			for _, r := range rs {
				if r.Error != "" || !strings.Contains(r.Body, c.body) {
					t.Fatalf("%+v, want %q in the body", r, c.body)
				}
			}
		})
	}
	// gRPC requests of one client are spread, although each client keeps one connection to its sidecar.
	if got := ns.Call(fromClient, "-n", "40", "grpc://echo:9000").Versions(); len(got) != 2 {
		t.Errorf("gRPC was answered by %v, want both versions", got)
	}
	ns.Apply(virtualService("echo", `  - match: [{port: 9000}]
    fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}
    route:
    - destination: {host: echo, port: {number: 9000}}
  - route:
    - destination: {host: echo}
`))
	Eventually(t, "gRPC abort", func() error {
		if r := ns.Call(fromClient, "grpc://echo:9000")[0]; !strings.Contains(r.Error, "code = Unavailable") {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
}
