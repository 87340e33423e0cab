package envoy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/mesh"
)

// The gateway's pod is the lab's pod; what it leads to runs outside.
const labGateway = `
apiVersion: v1
kind: Pod
metadata:
  name: ingress-1
  namespace: istio-system
  labels: {istio: ingressgateway}
spec: {serviceAccountName: ingress, containers: [{name: istio-proxy, image: auto}]}
status: {phase: Running, podIP: 10.77.0.2, podIPs: [{ip: 10.77.0.2}, {ip: "fd77::2"}]}
---
apiVersion: v1
kind: Service
metadata: {name: ingress, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  clusterIP: 10.96.0.20
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: https, port: 443, targetPort: 8443}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.21, ports: [{name: http, port: 80, targetPort: 9080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 9080}]
endpoints: [{addresses: [10.77.0.1], conditions: {ready: true}}]
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: default}
spec: {clusterIP: 10.96.0.22, ports: [{name: tcp, port: 2701}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: echo-1, namespace: default, labels: {kubernetes.io/service-name: echo}}
addressType: IPv4
ports: [{name: tcp, port: 2701}]
endpoints: [{addresses: [10.77.0.1], conditions: {ready: true}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [web.example.com, "*.apps.example.com"]}
  - {port: {number: 31400, name: tcp, protocol: TCP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: shared, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["default/shared.example.com"]}
  - {port: {number: 80, name: http-to-https, protocol: HTTP}, hosts: [secure.example.com], tls: {httpsRedirect: true}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default}
spec:
  hosts: [web.example.com, "*.apps.example.com", elsewhere.example.com]
  gateways: [web]
  http:
  - match: [{uri: {prefix: /backend}}]
    redirect: {uri: /, authority: dycloud.fun, port: 80}
  - match: [{uri: {prefix: /canary}}]
    rewrite: {uri: /}
    route: [{destination: {host: web}}]
  - route: [{destination: {host: web}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shared, namespace: default}
spec:
  hosts: [shared.example.com]
  gateways: [istio-system/shared]
  http: [{route: [{destination: {host: web}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: intruder, namespace: other}
spec:
  hosts: [shared.example.com]
  gateways: [istio-system/shared]
  http: [{match: [{uri: {prefix: /mine}}], directResponse: {status: 418}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo, namespace: default}
spec:
  hosts: ["*"]
  gateways: [web]
  tcp: [{match: [{port: 31400}], route: [{destination: {host: echo, port: {number: 2701}}}]}]
`

func labRouter(s *mesh.Snapshot) Proxy {
	w := s.Workload("istio-system", "ingress-1")
	return Proxy{Kind: Router, Namespace: "istio-system", Pod: "ingress-1", ServiceAccount: "ingress", Workload: w, Addresses: w.Addresses}
}

// serveWeb answers with the path and what the gateway added.
func (p place) serveWeb(address string) {
	p.t.Helper()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("server", "the app's")
		fmt.Fprintf(w, "%s %s xff=%s proto=%s xfcc=%t", r.Host, r.URL.Path, r.Header.Get("x-forwarded-for"),
			r.Header.Get("x-forwarded-proto"), r.Header.Get("x-forwarded-client-cert") != "")
	})}
	ln := p.listen(address)
	go server.Serve(ln)
	p.t.Cleanup(func() { server.Close() })
}

func (p place) ask(url, host string, header http.Header) (*http.Response, string) {
	p.t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	req.Host = host
	res, err := p.client().Do(req)
	if err != nil {
		p.t.Fatalf("%s: %v", url, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return res, string(body)
}

func TestAGatewayServesTheHostsOfItsGatewaysAndNoOthers(t *testing.T) {
	l := newLab(t)
	l.outside.serveWeb("10.77.0.1:9080")
	s := snapshotOf(t, labGateway)
	w := NewWorld(s, nil)
	l.start(l.pod, append(w.Sets(labRouter(s)), l.secrets("ingress"))...)
	if problems := w.Problems(); len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}

	const gateway = "http://10.77.0.2:8080" // the Service's port 80
	for _, c := range []struct {
		host, path string
		status     int
		body       string // or the location of a redirect
	}{
		{"web.example.com", "/", 200, "web.example.com / xff=10.77.0.1 proto=http xfcc=false"},
		{"web.example.com:8080", "/a//b/../c", 200, "web.example.com:8080 /a//c xff=10.77.0.1 proto=http xfcc=false"},
		{"one.apps.example.com", "/x", 200, "one.apps.example.com /x xff=10.77.0.1 proto=http xfcc=false"},
		{"web.example.com", "/canary", 200, "web.example.com / xff=10.77.0.1 proto=http xfcc=false"},
		{"web.example.com", "/backend", 301, "http://dycloud.fun/"},
		{"shared.example.com", "/", 200, "shared.example.com / xff=10.77.0.1 proto=http xfcc=false"},
		{"shared.example.com", "/mine", 200, "shared.example.com /mine xff=10.77.0.1 proto=http xfcc=false"}, // not the other namespace's
		{"secure.example.com", "/p", 301, "https://secure.example.com/p"},
		{"elsewhere.example.com", "/", 404, ""}, // of the VirtualService, but not of the Gateway
		{"unknown.example.com", "/", 404, ""},
		{"10.77.0.2:8080", "/", 404, ""},
	} {
		res, body := l.outside.ask(gateway+c.path, c.host, http.Header{"X-Forwarded-Client-Cert": {"By=me"}})
		if loc := res.Header.Get("location"); loc != "" {
			body = loc
		}
		if res.StatusCode != c.status || body != c.body {
			t.Errorf("%s%s: got %d %q, want %d %q", c.host, c.path, res.StatusCode, body, c.status, c.body)
		}
		if got := res.Header.Get("server"); got != "istio-envoy" {
			t.Errorf("%s%s: server: %q", c.host, c.path, got)
		}
		if c.status == 200 && res.Header.Get("x-envoy-upstream-service-time") == "" {
			t.Errorf("%s%s: no x-envoy-upstream-service-time", c.host, c.path)
		}
	}
	// Over IPv6 too.
	if res, _ := l.outside.ask("http://[fd77::2]:8080/", "web.example.com", nil); res.StatusCode != 200 {
		t.Errorf("over IPv6: %d", res.StatusCode)
	}

	ln := l.outside.listen("10.77.0.1:2701")
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				line, _ := bufio.NewReader(conn).ReadString('\n')
				io.WriteString(conn, "hello "+line)
			}()
		}
	}()
	conn, err := l.outside.dial(context.Background(), "tcp", "10.77.0.2:31400")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(conn, "world\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "hello world\n" {
		t.Errorf("TCP through the gateway: %q, %v", line, err)
	}
}

const labTLS = `
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: tls, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [web.example.com], tls: {mode: SIMPLE, serverCertificate: DIR/web.pem, privateKey: DIR/web.key}}
  - {port: {number: 443, name: mutual, protocol: HTTPS}, hosts: [mutual.example.com], tls: {mode: MUTUAL, serverCertificate: DIR/web.pem, privateKey: DIR/web.key, caCertificates: DIR/ca.pem}}
  - {port: {number: 443, name: through, protocol: TLS}, hosts: [own.example.com], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tls-web, namespace: default}
spec:
  hosts: [web.example.com, mutual.example.com]
  gateways: [tls]
  http: [{route: [{destination: {host: web}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: own, namespace: default}
spec:
  hosts: [own.example.com]
  gateways: [tls]
  tls: [{match: [{port: 443, sniHosts: [own.example.com]}], route: [{destination: {host: echo}}]}]
`

func TestAGatewayEndsOrPassesTLSByServerName(t *testing.T) {
	l := newLab(t)
	l.outside.serveWeb("10.77.0.1:9080")
	dir, err := os.MkdirTemp("", "gateway-tls")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	web, own, client := l.svid("web"), l.svid("own"), l.svid("client")
	for name, content := range map[string][]byte{"web.pem": web.Chain, "web.key": web.Key, "ca.pem": l.authority.Roots()} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ownCertificate, err := tls.X509KeyPair(own.Chain, own.Key)
	if err != nil {
		t.Fatal(err)
	}
	ownServer := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "own TLS") })}
	go ownServer.Serve(tls.NewListener(l.outside.listen("10.77.0.1:2701"), &tls.Config{Certificates: []tls.Certificate{ownCertificate}}))
	t.Cleanup(func() { ownServer.Close() })

	s := snapshotOf(t, labGateway+strings.ReplaceAll(labTLS, "DIR", dir))
	l.start(l.pod, append(NewWorld(s, nil).Sets(labRouter(s)), l.secrets("ingress"))...)

	visit := func(name string, svid *identity.SVID) string {
		config := &tls.Config{ServerName: name, InsecureSkipVerify: true}
		if svid != nil {
			certificate, err := tls.X509KeyPair(svid.Chain, svid.Key)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{certificate}
		}
		var account string
		config.VerifyConnection = func(c tls.ConnectionState) error {
			account = filepath.Base(c.PeerCertificates[0].URIs[0].Path)
			return nil
		}
		client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   config,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return l.outside.dial(ctx, network, "10.77.0.2:8443")
			},
		}}
		res, err := client.Get("https://" + name + "/")
		if err != nil {
			return connectionEnd(err)
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return account + ": " + strings.TrimSpace(fmt.Sprintf("%d %s", res.StatusCode, body))
	}
	for _, c := range []struct {
		name string
		svid *identity.SVID
		want string
	}{
		{"web.example.com", nil, "web: 200 web.example.com / xff=10.77.0.1 proto=https xfcc=false"},
		{"mutual.example.com", nil, "certificate required"},
		{"mutual.example.com", client, "web: 200 mutual.example.com / xff=10.77.0.1 proto=https xfcc=true"},
		{"own.example.com", nil, "own: 200 own TLS"},
		{"unknown.example.com", nil, "reset"},
	} {
		got := visit(c.name, c.svid)
		if c.want == "certificate required" && got == "reset" {
			got = c.want // with TLS 1.3 the alert can be overtaken by the end of the connection
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}
