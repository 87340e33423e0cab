package envoy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/redirect"
	"golang.org/x/net/http2"
)

// labClient makes a second pod of the world outside.
const labClient = `
---
apiVersion: v1
kind: Pod
metadata:
  name: client-1
  namespace: default
  labels: {app: client, security.istio.io/tlsMode: istio}
  annotations: {sidecar.istio.io/status: "{}"}
spec:
  serviceAccountName: client
  containers: [{name: client, image: client}]
status: {phase: Running, podIP: 10.77.0.1, podIPs: [{ip: 10.77.0.1}, {ip: "fd77::1"}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: app-1, namespace: default, labels: {kubernetes.io/service-name: app}}
addressType: IPv4
ports:
- {name: http-web, port: 8080}
- {name: tcp-echo, port: 9000}
- {name: tcp-banner, port: 9001}
- {name: echo, port: 7000}
- {name: banner, port: 7001}
- {name: grpc-api, port: 5000}
endpoints:
- addresses: [10.77.0.2]
  conditions: {ready: true}
  targetRef: {kind: Pod, name: app-1, namespace: default}
`

// fromApp makes one HTTP request as the client pod's app, in plaintext, to an address of the cluster.
func (p place) fromApp(address string, h2 bool) string {
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) { return p.dial(ctx, network, address) }
	var transport http.RoundTripper = &http.Transport{DialContext: dial, DisableKeepAlives: true}
	if h2 {
		transport = &http2.Transport{
			AllowHTTP: true,
			DialTLSContext: func(ctx context.Context, network, a string, _ *tls.Config) (net.Conn, error) {
				return dial(ctx, network, a)
			},
		}
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: transport}
	req, err := http.NewRequest("GET", "http://app/", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	// What a client says of itself is not believed.
	req.Header.Set("x-forwarded-client-cert", "By=spiffe://cluster.local/ns/default/sa/app;URI=spiffe://cluster.local/ns/kube-system/sa/admin")
	res, err := client.Do(req)
	if err != nil {
		return connectionEnd(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return connectionEnd(err)
	}
	return fmt.Sprintf("%d %s", res.StatusCode, body)
}

func TestTwoSidecarsUnderstandEachOther(t *testing.T) {
	l := newLab(t)
	l.pod.redirect(redirect.Default())
	l.outside.redirect(redirect.Default())
	for _, p := range labPorts {
		l.serveAnything(p.port)
		if p.banner != 0 {
			l.serveBanner(p.banner)
		}
	}
	var server, client *envoyProcess
	var world *World
	for _, mode := range []string{"PERMISSIVE", "STRICT", "DISABLE"} {
		s := snapshotOf(t, labPolicy(mode)+labClient)
		world = NewWorld(s, nil)
		serverSets := append(world.Sets(labProxy(s)), l.secrets("app"))
		clientSets := append(world.Sets(Proxy{
			Kind: Sidecar, Inline: true, Namespace: "default", Pod: "client-1", ServiceAccount: "client",
			Workload:  s.Workload("default", "client-1"),
			Addresses: []netip.Addr{l.outside.v4, l.outside.v6},
		}), l.secrets("client"))
		if server == nil {
			server, client = l.start(l.pod, serverSets...), l.start(l.outside, clientSets...)
		} else {
			server.update(serverSets...)
			client.update(clientSets...)
		}
		secured := mode != "DISABLE"
		for _, c := range []struct {
			what      string
			address   string
			proto     [2]string // that the app sees of HTTP/1.1 and HTTP/2 clients
			l7        bool
			byService bool
		}{
			{"declared http", "10.96.0.10:80", [2]string{"HTTP/1.1", "HTTP/1.1"}, true, true},
			{"declared grpc", "10.96.0.10:5000", [2]string{"HTTP/2.0", "HTTP/2.0"}, true, true},
			{"undeclared", "10.96.0.10:7000", [2]string{"HTTP/1.1", "HTTP/2.0"}, true, true},
			{"declared tcp", "10.96.0.10:9000", [2]string{"HTTP/1.1", "HTTP/2.0"}, false, true},
			{"pod address", "10.77.0.2:7000", [2]string{"HTTP/1.1", "HTTP/2.0"}, true, false},
		} {
			if mode == "STRICT" && !c.byService {
				continue // the client's sidecar passes plaintext on to addresses of no service, and the server's refuses it
			}
			for i, h2 := range []bool{false, true} {
				ask := func() error {
					got := l.outside.fromApp(c.address, h2)
					head, xfcc, _ := strings.Cut(got, " xfcc=")
					if want := "200 " + c.proto[i] + " " + viaSidecar; head != want {
						return fmt.Errorf("got %q, want %q", got, want)
					}
					switch {
					case !c.l7:
					case secured && c.byService && (!strings.Contains(xfcc, asClient) || strings.Contains(xfcc, "admin")):
						return fmt.Errorf("the caller is %q", xfcc)
					case !secured && xfcc != "":
						return fmt.Errorf("an unproven caller %q", xfcc)
					}
					return nil
				}
				// Connections that were open before the mode changed serve one more request.
				if err := poll(5*time.Second, ask); err != nil {
					t.Errorf("%s, %s, HTTP/2 %v: %v", mode, c.what, h2, err)
				}
			}
		}
		for _, c := range []struct{ what, address string }{
			{"declared tcp", "10.96.0.10:9001"},
			{"undeclared", "10.96.0.10:7001"},
		} {
			conn, err := l.outside.dial(context.Background(), "tcp", c.address)
			if err != nil {
				t.Errorf("%s, %s: %v", mode, c.what, err)
				continue
			}
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			if line, err := bufio.NewReader(conn).ReadString('\n'); line != "220 hello\n" {
				t.Errorf("%s, %s: the server speaks first, and the client hears %q (%v)", mode, c.what, line, err)
			}
			conn.Close()
		}
		// A pod that calls its own service meets itself, like any other caller.
		if err := poll(5*time.Second, func() error {
			got := l.pod.fromApp("10.96.0.10:80", false)
			if strings.HasPrefix(got, "200 HTTP/1.1 "+viaSidecar) && strings.Contains(got, "URI=spiffe://cluster.local/ns/default/sa/app") == secured {
				return nil
			}
			return fmt.Errorf("got %q", got)
		}); err != nil {
			t.Errorf("%s, the pod's own service: %v", mode, err)
		}
		// Within the pod nothing is in between.
		if got := l.pod.fromApp("10.77.0.2:8080", false); !strings.HasPrefix(got, "200 HTTP/1.1 from=10.77.0.2") {
			t.Errorf("%s, the pod's own address: %q", mode, got)
		}
		// Through a client's sidecar the probe works as well.
		for _, p := range []struct {
			at place
			ip netip.Addr
		}{{l.outside, l.pod.v4}, {l.outside, l.pod.v6}, {l.pod, l.outside.v4}} {
			address := net.JoinHostPort(p.ip.String(), "15099")
			if err := poll(3*time.Second, func() error {
				if got := p.at.get("http://" + address + "/healthz/ready"); got != "200" {
					return fmt.Errorf("got %q", got)
				}
				return nil
			}); err != nil {
				t.Errorf("%s: probe of %s: %v", mode, address, err)
			}
		}
	}
	if problems := world.Problems(); len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
}
