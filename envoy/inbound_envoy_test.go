package envoy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/redirect"
)

// The pod of the tests: every kind of port twice, once with an app that answers what it is asked in whatever protocol, and
// once (the port above) with one that speaks first.
const labPod = `
apiVersion: v1
kind: Pod
metadata:
  name: app-1
  namespace: default
  labels: {app: app, security.istio.io/tlsMode: istio}
  annotations: {sidecar.istio.io/status: "{}"}
spec:
  serviceAccountName: app
  containers: [{name: app, image: app}]
status:
  phase: Running
  podIP: 10.77.0.2
  podIPs: [{ip: 10.77.0.2}, {ip: "fd77::2"}]
---
apiVersion: v1
kind: Service
metadata: {name: app, namespace: default}
spec:
  selector: {app: app}
  clusterIP: 10.96.0.10
  ports:
  - {name: http-web, port: 80, targetPort: 8080}
  - {name: tcp-echo, port: 9000}
  - {name: tcp-banner, port: 9001}
  - {name: echo, port: 7000}
  - {name: banner, port: 7001}
  - {name: grpc-api, port: 5000}
`

func labPolicy(mode string) string {
	return labPod + `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: ` + mode + `}}
`
}

func labProxy(s *mesh.Snapshot) Proxy {
	return Proxy{
		Kind: Sidecar, Inline: true, Namespace: "default", Pod: "app-1", ServiceAccount: "app",
		Workload:  s.Workload("default", "app-1"),
		Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd77::2")},
	}
}

// inboundSets are a sidecar's Sets without the outbound side.
func inboundSets(s *mesh.Snapshot, p Proxy) []*Set {
	w := NewWorld(s, nil)
	return []*Set{w.workloadSet(p), w.proofSet(p), newSet("rest", 1, nil, []*Resource{blackHole(s.Mesh())})}
}

// serveAnything answers HTTP/1, HTTP/2 without TLS, and both inside TLS with a certificate that nobody trusts. Answers tell
// what arrived.
func (l *lab) serveAnything(port int) {
	l.t.Helper()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	foreign, err := identity.Open(l.t.Context(), identity.Dir(l.t.TempDir()), "elsewhere")
	if err != nil {
		l.t.Fatal(err)
	}
	svid, err := foreign.Issue(identity.ID{TrustDomain: "elsewhere", Namespace: "x", ServiceAccount: "app"}, time.Hour)
	if err != nil {
		l.t.Fatal(err)
	}
	certificate, err := tls.X509KeyPair(svid.Chain, svid.Key)
	if err != nil {
		l.t.Fatal(err)
	}
	server := &http.Server{
		Protocols:   &protocols,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprintf(w, "%s from=%s", r.Proto, host)
			if conn := r.Context().Value(connKey{}).(*lateTLS); conn.out != conn.Conn {
				fmt.Fprint(w, " app-tls")
			}
			if xfcc := r.Header.Get("x-forwarded-client-cert"); xfcc != "" {
				fmt.Fprintf(w, " xfcc=%s", xfcc)
			}
		}),
	}
	for _, host := range []string{l.pod.v4.String(), l.pod.v6.String()} {
		ln := &eitherTLS{Listener: l.pod.listen(net.JoinHostPort(host, fmt.Sprint(port))), config: &tls.Config{Certificates: []tls.Certificate{certificate}}}
		go server.Serve(ln)
	}
	l.t.Cleanup(func() { server.Close() })
}

type connKey struct{}

// eitherTLS accepts TLS and plaintext on one port.
type eitherTLS struct {
	net.Listener
	config *tls.Config
}

func (l *eitherTLS) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lateTLS{Conn: conn, config: l.config}, nil
}

// lateTLS becomes TLS when the first byte says so.
type lateTLS struct {
	net.Conn
	config *tls.Config
	once   sync.Once
	in     io.Reader
	out    net.Conn
	err    error
}

func (c *lateTLS) start() {
	first := make([]byte, 1)
	if _, c.err = io.ReadFull(c.Conn, first); c.err != nil {
		return
	}
	whole := &prefixed{Conn: c.Conn, in: io.MultiReader(bytes.NewReader(first), c.Conn)}
	if first[0] == 0x16 { // a TLS handshake record
		c.out = tls.Server(whole, c.config)
		c.in = c.out
		return
	}
	c.in, c.out = whole, c.Conn
}

func (c *lateTLS) Read(b []byte) (int, error) {
	c.once.Do(c.start)
	if c.err != nil {
		return 0, c.err
	}
	return c.in.Read(b)
}

func (c *lateTLS) Write(b []byte) (int, error) { return c.out.Write(b) }

type prefixed struct {
	net.Conn
	in io.Reader
}

func (c *prefixed) Read(b []byte) (int, error) { return c.in.Read(b) }

// serveBanner speaks first, like a mail server, and then repeats what it hears.
func (l *lab) serveBanner(port int) {
	l.t.Helper()
	for _, host := range []string{l.pod.v4.String(), l.pod.v6.String()} {
		ln := l.pod.listen(net.JoinHostPort(host, fmt.Sprint(port)))
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					io.WriteString(conn, "220 hello\n")
					io.Copy(conn, conn)
				}()
			}
		}()
	}
}

// meshTLS is what the sidecar of a mesh client does: TLS with an SVID, and ALPN that says what is inside.
func (l *lab) meshTLS(alpn ...string) *tls.Config {
	l.t.Helper()
	svid := l.svid("client")
	certificate, err := tls.X509KeyPair(svid.Chain, svid.Key)
	if err != nil {
		l.t.Fatal(err)
	}
	return &tls.Config{
		Certificates:       []tls.Certificate{certificate},
		NextProtos:         alpn,
		InsecureSkipVerify: true, // SVIDs have no DNS name: checked below
		VerifyConnection: func(s tls.ConnectionState) error {
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(l.authority.Roots())
			if _, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
				return err
			}
			if got := s.PeerCertificates[0].URIs[0].String(); got != "spiffe://cluster.local/ns/default/sa/app" {
				return fmt.Errorf("the server is %s", got)
			}
			return nil
		},
	}
}

// A visitor is a kind of client; visit returns what came of it.
type visitor struct {
	name  string
	visit func(l *lab, address string) string
}

var foreignTLS = &tls.Config{InsecureSkipVerify: true}

var visitors = []visitor{
	{"plain HTTP", func(l *lab, a string) string { return l.request(a, nil, false) }},
	{"plain h2c", func(l *lab, a string) string { return l.request(a, nil, true) }},
	{"mesh HTTP", func(l *lab, a string) string { return l.request(a, l.meshTLS("istio-http/1.1", "istio"), false) }},
	{"mesh h2", func(l *lab, a string) string { return l.request(a, l.meshTLS("istio-http/1.1", "istio"), true) }},
	{"foreign TLS", func(l *lab, a string) string { return l.request(a, foreignTLS, false) }},
}

// request makes one HTTP request from outside, over plaintext or the given TLS.
func (l *lab) request(address string, config *tls.Config, h2 bool) string {
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := l.outside.dial(ctx, network, address)
		if err != nil || config == nil {
			return conn, err
		}
		secured := tls.Client(conn, config)
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		if err := secured.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		return secured, nil
	}
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
	res, err := client.Get("http://app.default/")
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

// banner waits for the other side to speak first.
func (l *lab) banner(address string, config *tls.Config) string {
	conn, err := l.outside.dial(context.Background(), "tcp", address)
	if err != nil {
		return connectionEnd(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if config != nil {
		secured := tls.Client(conn, config)
		if err := secured.Handshake(); err != nil {
			return connectionEnd(err)
		}
		conn = secured
	}
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	if err != nil {
		return connectionEnd(err)
	}
	if _, err := io.WriteString(conn, "bye\n"); err != nil {
		return connectionEnd(err)
	}
	again, err := in.ReadString('\n')
	if err != nil {
		return connectionEnd(err)
	}
	return strings.TrimSpace(line) + ", " + strings.TrimSpace(again)
}

// ports by how the mesh knows them.
var labPorts = []struct {
	name   string
	port   int // with the app that answers
	banner int // with the app that speaks first; 0: none
}{
	{"declared http", 8080, 0},
	{"declared tcp", 9000, 9001},
	{"undeclared", 7000, 7001},
	{"declared grpc", 5000, 0},
	{"no service", 6000, 6001},
}

const (
	viaSidecar = "from=127.0.0.6"
	asClient   = `URI=spiffe://cluster.local/ns/default/sa/client`
)

func TestSidecarsAcceptWhatPeerAuthenticationAllows(t *testing.T) {
	l := newLab(t)
	l.redirect(redirect.Default())
	for _, p := range labPorts {
		l.serveAnything(p.port)
		if p.banner != 0 {
			l.serveBanner(p.banner)
		}
	}
	var e *envoyProcess
	for _, mode := range []string{"PERMISSIVE", "STRICT", "DISABLE"} {
		s := snapshotOf(t, labPolicy(mode))
		sets := append(inboundSets(s, labProxy(s)), l.secrets("app"))
		if e == nil {
			e = l.start(l.pod, sets...)
		} else {
			e.update(sets...)
		}
		for _, p := range labPorts {
			for _, host := range []string{l.pod.v4.String(), l.pod.v6.String()} {
				address := net.JoinHostPort(host, fmt.Sprint(p.port))
				for _, v := range visitors {
					want := wantVisit(mode, p.name, v.name)
					if l.pod.v6.String() == host {
						want = strings.ReplaceAll(want, viaSidecar, "from=::6")
					}
					if got := v.visit(l, address); !matchesVisit(got, want) {
						t.Errorf("%s, %s port (%s), %s: got %q, want %q", mode, p.name, address, v.name, got, want)
					}
				}
				if p.banner == 0 {
					continue
				}
				address = net.JoinHostPort(host, fmt.Sprint(p.banner))
				started := time.Now()
				if mode != "STRICT" { // where nothing ever comes, until the client gives up or says something
					if got := l.banner(address, nil); got != "220 hello, bye" {
						t.Errorf("%s, %s port, plain client that listens: got %q", mode, p.name, got)
					}
				}
				if mode == "DISABLE" && p.name == "declared tcp" && time.Since(started) >= sniffTimeout {
					t.Errorf("DISABLE, declared tcp: the banner took %v, although nothing has to be sniffed", time.Since(started))
				}
				started = time.Now()
				got := l.banner(address, l.meshTLS("istio-peer-exchange", "istio"))
				if mode == "DISABLE" {
					if got == "220 hello, bye" {
						t.Errorf("DISABLE, %s port: mesh TLS was accepted", p.name)
					}
				} else if got != "220 hello, bye" || time.Since(started) >= sniffTimeout {
					t.Errorf("%s, %s port, mesh client that listens: got %q after %v", mode, p.name, got, time.Since(started))
				}
			}
		}
	}
}

// wantVisit is what a visitor of a port with the answering app should get.
func wantVisit(mode, port, visitor string) string {
	// What the app is spoken to in: as declared, or else as the client spoke.
	proto := "HTTP/1.1"
	if strings.HasSuffix(visitor, "h2c") || strings.HasSuffix(visitor, "h2") {
		proto = "HTTP/2.0"
	}
	switch port {
	case "declared http":
		proto = "HTTP/1.1"
	case "declared grpc":
		proto = "HTTP/2.0"
	}
	plain := "200 " + proto + " " + viaSidecar
	inside := plain + " xfcc=" + asClient
	if port == "declared tcp" {
		inside = plain // nobody looks into the bytes
	}
	own := "200 HTTP/1.1 " + viaSidecar + " app-tls"
	switch mode {
	case "PERMISSIVE":
		switch visitor {
		case "plain HTTP", "plain h2c":
			return plain
		case "foreign TLS":
			return own
		}
		return inside
	case "STRICT":
		switch visitor {
		case "plain HTTP", "plain h2c":
			return "reset"
		case "foreign TLS":
			return "certificate required"
		}
		return inside
	default:
		switch visitor {
		case "plain HTTP", "plain h2c":
			return plain
		case "foreign TLS":
			if port == "declared http" || port == "declared grpc" {
				return "not TLS"
			}
			return own
		}
		// Mesh TLS where none is spoken: the app sees it, and is no peer of the mesh.
		if port == "declared http" || port == "declared grpc" {
			return "not TLS"
		}
		return "unknown authority"
	}
}

// matchesVisit compares all but the certificate's hash.
func matchesVisit(got, want string) bool {
	if want == "certificate required" && got == "reset" {
		return true // a client of TLS 1.3 sends its request before it can know, and may find the connection closed
	}
	head, uri, ok := strings.Cut(want, " xfcc=")
	if !ok {
		return got == want
	}
	gotHead, xfcc, _ := strings.Cut(got, " xfcc=")
	return gotHead == head && strings.Contains(xfcc, "By=spiffe://cluster.local/ns/default/sa/app;Hash=") && strings.Contains(xfcc, uri)
}

func TestOpenConnectionsSurviveChangesOfOtherPorts(t *testing.T) {
	for _, mode := range []string{"PERMISSIVE", "STRICT", "DISABLE"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.redirect(redirect.Default())
			l.serveBanner(9001)
			s := snapshotOf(t, labPolicy(mode))
			e := l.start(l.pod, append(inboundSets(s, labProxy(s)), l.secrets("app"))...)
			conn, err := l.outside.dial(context.Background(), "tcp", "10.77.0.2:9001")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(15 * time.Second))
			if mode == "STRICT" {
				conn = tls.Client(conn, l.meshTLS("istio-peer-exchange", "istio"))
			}
			in := bufio.NewReader(conn)
			say := func(word string) {
				t.Helper()
				io.WriteString(conn, word+"\n")
				if line, err := in.ReadString('\n'); line != word+"\n" {
					t.Errorf("%q comes back as %q, %v", word, line, err)
				}
			}
			if line, err := in.ReadString('\n'); line != "220 hello\n" {
				t.Fatalf("%q, %v", line, err)
			}
			say("before")
			s = snapshotOf(t, labPolicy(mode)+`
---
apiVersion: v1
kind: Service
metadata: {name: more, namespace: default}
spec:
  selector: {app: app}
  clusterIP: 10.96.0.11
  ports: [{name: http-new, port: 80, targetPort: 8081}, {name: new, port: 81, targetPort: 8082}, {name: grpc-new, port: 82, targetPort: 8083}]
`)
			e.update(append(inboundSets(s, labProxy(s)), l.secrets("app"))...)
			say("after")
			// The listener's former self is gone after the drain time of one second, with the connections it owned.
			if err := poll(5*time.Second, func() error {
				if n := e.stat("listener_manager.total_listeners_draining") + e.stat("listener_manager.total_filter_chains_draining"); n > 0 {
					return fmt.Errorf("%d still draining", n)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			if n := e.stat("listener_manager.listener_in_place_updated"); n != 1 {
				t.Errorf("the listener was updated in place %d times", n)
			}
			say("much later")
		})
	}
}
