package envoy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/redirect"
)

// raw sends text to the pod and returns everything up to the end of the connection.
func (l *lab) raw(address, text string) string {
	l.t.Helper()
	conn, err := l.outside.dial(context.Background(), "tcp", address)
	if err != nil {
		return connectionEnd(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return connectionEnd(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil && len(b) == 0 {
		return connectionEnd(err)
	}
	return string(b)
}

// serveEcho answers requests with their line and Host, and takes upgrades to a protocol that repeats lines.
func (l *lab) serveEcho(port int) {
	l.t.Helper()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("upgrade") == "" {
			w.Header().Set("server", "app/1")
			fmt.Fprintf(w, "%s %s %s", r.Proto, r.Host, r.URL.EscapedPath())
			return
		}
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(conn, rw)
	})}
	go server.Serve(l.pod.listen(fmt.Sprintf("10.77.0.2:%d", port)))
	l.t.Cleanup(func() { server.Close() })
}

const logRequests = `
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "accessLogFile: /dev/stdout"}
`

func TestInboundRequestsArriveAsTheyWereMeant(t *testing.T) {
	l := newLab(t)
	l.redirect(redirect.Default())
	l.serveEcho(8080)
	l.serveEcho(6000)
	s := snapshotOf(t, labPolicy("PERMISSIVE")+logRequests)
	e := l.start(l.pod, append(inboundSets(s, labProxy(s)), l.secrets("app"))...)

	t.Run("HTTP/1.0 without a Host", func(t *testing.T) {
		got := l.raw("10.77.0.2:8080", "GET /old HTTP/1.0\r\n\r\n")
		if !strings.HasPrefix(got, "HTTP/1.0 200 OK") && !strings.HasPrefix(got, "HTTP/1.1 200 OK") || !strings.HasSuffix(got, "HTTP/1.1 localhost /old") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("paths are normalized", func(t *testing.T) {
		got := l.raw("10.77.0.2:8080", "GET /a/./b/../c%2Fd//e HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		if !strings.HasSuffix(got, "h /a/c%2Fd//e") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("the app's Server header stays", func(t *testing.T) {
		got := l.raw("10.77.0.2:8080", "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		if !strings.Contains(got, "server: app/1\r\n") {
			t.Errorf("got %q", got)
		}
	})
	for _, port := range []string{"8080", "6000"} {
		t.Run("WebSocket on port "+port, func(t *testing.T) {
			conn, err := l.outside.dial(context.Background(), "tcp", "10.77.0.2:"+port)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n")
			in := bufio.NewReader(conn)
			res, err := http.ReadResponse(in, nil)
			if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("%v, %v", res, err)
			}
			io.WriteString(conn, "both ways\n")
			if line, err := in.ReadString('\n'); line != "both ways\n" {
				t.Errorf("got %q, %v", line, err)
			}
		})
	}

	t.Run("a capture port itself leads nowhere", func(t *testing.T) {
		for _, port := range []string{"15006", "15001"} {
			before := e.stat("listener.[__]_15006.downstream_cx_total")
			if got := l.raw("10.77.0.2:"+port, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); got != "reset" && got != "" {
				t.Errorf("port %s: got %q", port, got)
			}
			if n := e.stat("listener.[__]_15006.downstream_cx_total") - before; n > 3 { // the pod's own checks come in between
				t.Errorf("port %s: one connection became %d", port, n)
			}
		}
	})

	t.Run("gRPC", func(t *testing.T) {
		server := grpc.NewServer()
		state := health.NewServer()
		state.SetServingStatus("db", healthpb.HealthCheckResponse_NOT_SERVING)
		healthpb.RegisterHealthServer(server, state)
		go server.Serve(l.pod.listen("10.77.0.2:5000"))
		t.Cleanup(server.Stop)
		go server.Serve(l.pod.listen("10.77.0.2:7000")) // a port that nobody declared
		for _, c := range []struct {
			name, address string
			security      credentials.TransportCredentials
		}{
			{"plaintext, declared", "10.77.0.2:5000", insecure.NewCredentials()},
			{"plaintext, undeclared", "10.77.0.2:7000", insecure.NewCredentials()},
		} {
			conn, err := grpc.NewClient("passthrough:///"+c.address, grpc.WithTransportCredentials(c.security),
				grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return l.outside.dial(ctx, "tcp", a) }))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			client := healthpb.NewHealthClient(conn)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if res, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: "db"}); err != nil || res.Status != healthpb.HealthCheckResponse_NOT_SERVING {
				t.Errorf("%s: %v, %v", c.name, res, err)
			}
			if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: "nobody"}); status.Code(err) != codes.NotFound {
				t.Errorf("%s: an error becomes %v", c.name, err)
			}
			stream, err := client.Watch(ctx, &healthpb.HealthCheckRequest{Service: "db"})
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			for _, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_NOT_SERVING, healthpb.HealthCheckResponse_SERVING} {
				if res, err := stream.Recv(); err != nil || res.Status != want {
					t.Errorf("%s: stream: %v, %v", c.name, res, err)
				}
				state.SetServingStatus("db", healthpb.HealthCheckResponse_SERVING)
			}
			state.SetServingStatus("db", healthpb.HealthCheckResponse_NOT_SERVING)
		}
	})

	t.Run("access log", func(t *testing.T) {
		l.request("10.77.0.2:8080", l.meshTLS("istio-http/1.1", "istio"), false)
		line := regexp.MustCompile(`(?m)^\[[^]]+\] "GET / HTTP/1\.1" 200 - via_upstream - "-" 0 \d+ \d+ \d+ "-" "Go-http-client/1\.1" "[0-9a-f-]{36}" ` +
			`"app\.default" "10\.77\.0\.2:8080" inbound\|8080\|\| 127\.0\.0\.6:\d+ 10\.77\.0\.2:8080 10\.77\.0\.1:\d+ \S+ default$`)
		e.eventually("the request is in the log, as Istio writes it", func() error {
			b, err := os.ReadFile(e.log.Name())
			if err != nil {
				return err
			}
			if !line.Match(b) {
				return fmt.Errorf("log:\n%s", b)
			}
			return nil
		})
	})
}
