package bootstrap

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	grpcmetadata "google.golang.org/grpc/metadata"

	"github.com/weft-mesh/weft/e2e/kit"
)

const podIP = "10.9.8.7"

// ownNetwork gives the test's goroutine a network namespace with lo and the pod's address. What the goroutine listens on,
// dials and starts is in there, so the ports of the proxy are free however many tests run.
func ownNetwork(t *testing.T) {
	t.Helper()
	kit.Root(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and the namespace with its last process
	if _, err := netns.New(); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: netlink.NewIPNet(net.ParseIP(podIP))}); err != nil {
		t.Fatal(err)
	}
}

// controlPlane is the least that Envoy calls a control plane: it has no listeners and no clusters for anybody.
type controlPlane struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	token, node atomic.Value
	answer      chan struct{} // closed: answers may go out
}

func (c *controlPlane) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	if md, ok := grpcmetadata.FromIncomingContext(s.Context()); ok {
		c.token.Store(strings.Join(md.Get("authorization"), ","))
	}
	for {
		req, err := s.Recv()
		if err != nil {
			return err
		}
		if req.Node != nil {
			c.node.Store(req.Node.Id + " " + req.Node.Cluster + " " + req.Node.Metadata.Fields["INSTANCE_IPS"].GetStringValue())
		}
		if req.ResponseNonce != "" {
			continue
		}
		select {
		case <-c.answer:
		case <-s.Context().Done():
			return nil
		}
		if err := s.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.TypeUrl, Nonce: "1"}); err != nil {
			return err
		}
	}
}

// serve listens in the test's namespace and stops with the test.
func serve(t *testing.T, address string, start func(net.Listener)) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go start(l)
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

func authority(t *testing.T, name string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// get asks from the test's namespace; status 0 means no answer.
func get(address, path string, header http.Header) (status int, body string) {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return 0, err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	req, err := http.NewRequest(http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return 0, err.Error()
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Host = header.Get("Host")
	if err := req.Write(c); err != nil {
		return 0, err.Error()
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if holds() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(20 * time.Millisecond) // between two looks at the condition
	}
}

func TestEnvoyLogsInAndAnswersTheAppsProbes(t *testing.T) {
	envoy := kit.Envoy(t)
	ownNetwork(t)
	dir := t.TempDir()
	settings := Settings{DiscoverySAN: "istiod.istio-system.svc"}
	settings.TokenFile, settings.RootDocument = secrets(t, dir)
	certificate, root := authority(t, settings.DiscoverySAN)
	document := fmt.Sprintf("resources:\n- \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: xds-ca\n  validation_context: {trusted_ca: {inline_string: %q}}\n", root)
	if err := os.WriteFile(settings.RootDocument, []byte(document), 0o644); err != nil {
		t.Fatal(err)
	}

	plane := &controlPlane{answer: make(chan struct{})}
	gs := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&certificate)))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(gs, plane)
	t.Cleanup(gs.Stop)
	port := serve(t, "127.0.0.1:0", func(l net.Listener) { _ = gs.Serve(l) })
	settings.DiscoveryAddress = fmt.Sprintf("127.0.0.1:%d", port)

	// The app listens on the pod's address only, so that only what really goes there can reach it.
	var asked atomic.Value
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.RequestURI + " host=" + r.Host + " from=" + r.RemoteAddr[:strings.LastIndexByte(r.RemoteAddr, ':')] + " forwarded=" + r.Header.Get("X-Forwarded-For") + " probe=" + r.Header.Get("X-Probe"))
		switch r.URL.Path {
		case "/broken":
			w.WriteHeader(http.StatusInternalServerError)
		case "/moved":
			http.Redirect(w, r, "/somewhere", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		}
		fmt.Fprint(w, "app_requests 1\n# EOF\n")
	})
	plain := serve(t, podIP+":0", func(l net.Listener) { _ = http.Serve(l, app) })
	secure := serve(t, podIP+":0", func(l net.Listener) {
		_ = http.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}}), app)
	})
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	h2c := serve(t, podIP+":0", func(l net.Listener) { _ = (&http.Server{Handler: app, Protocols: &protocols}).Serve(l) })
	checks := health.NewServer()
	hs := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(hs, checks)
	t.Cleanup(hs.Stop)
	rpc := serve(t, podIP+":0", func(l net.Listener) { _ = hs.Serve(l) })
	// Closed by the test, and never accepting: the kernel answers, as for kubelet's tcpSocket.
	raw, err := net.Listen("tcp", podIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	tcp := netip.MustParseAddrPort(raw.Addr().String()).Port()

	second := time.Second
	text := build(t, settings, Params{
		Kind: Sidecar, App: "app", AppMetrics: &AppMetrics{Port: plain, Path: "/metrics"},
		Probes: []Probe{
			{Path: "/app-health/app/readyz", Port: plain, Target: `/ready?a=\1&b=%20x`, Timeout: second},
			{Path: "/app-health/app/livez", Port: plain, Target: "/broken", Timeout: second},
			{Path: "/app-health/app/startupz", Port: plain, Target: "/moved", Timeout: second},
			{Path: "/app-health/slow/readyz", Port: plain, Target: "/slow", Timeout: second},
			{Path: "/app-health/tls/readyz", Handler: HTTPS, Port: secure, Target: "/", Timeout: second},
			{Path: "/app-health/h2c/readyz", Handler: H2C, Port: h2c, Target: "/", Timeout: second},
			{Path: "/app-health/tcp/readyz", Handler: TCP, Port: tcp, Timeout: second},
			{Path: "/app-health/rpc/readyz", Handler: GRPC, Port: rpc, Target: "my.Service", Timeout: second},
		},
	})
	log, err := os.Create(filepath.Join(dir, "envoy.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(envoy, "--config-yaml", expand(text, environment(podIP)), "--disable-hot-restart", "--concurrency", "1", "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if out, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("envoy:\n%s", out)
		}
	})

	eventually(t, "Envoy logs in", func() bool { return plane.node.Load() != nil })
	if got, want := plane.token.Load(), "Bearer token"; got != want {
		t.Errorf("authorization %q, want %q", got, want)
	}
	if got, want := plane.node.Load(), "sidecar~"+podIP+"~pod.ns~ns.svc.cluster.local app.ns "+podIP; got != want {
		t.Errorf("node %q, want %q", got, want)
	}
	if status, _ := get(podIP+":15021", HealthPath, nil); status == http.StatusOK {
		t.Error("ready without configuration")
	}
	close(plane.answer)
	eventually(t, "ready with configuration", func() bool { s, _ := get(podIP+":15021", HealthPath, nil); return s == http.StatusOK })

	probe := func(path string, header http.Header) int {
		status, _ := get(podIP+":15020", path, header)
		return status
	}
	if got := probe("/app-health/app/readyz", http.Header{"Host": {"web.example.com"}, "X-Probe": {"yes"}}); got != http.StatusOK {
		t.Errorf("a good HTTP probe: %d", got)
	}
	if got, want := asked.Load(), `/ready?a=\1&b=%20x host=web.example.com from=127.0.0.6 forwarded= probe=yes`; got != want {
		t.Errorf("the app was asked for %q, want %q", got, want)
	}
	for path, want := range map[string]int{
		"/app-health/app/livez":               http.StatusInternalServerError,
		"/app-health/app/startupz":            http.StatusFound,
		"/app-health/slow/readyz":             http.StatusGatewayTimeout,
		"/app-health/tls/readyz":              http.StatusOK,
		"/app-health/h2c/readyz":              http.StatusOK,
		"/app-health/nobody/livez":            http.StatusNotFound,
		"/config_dump":                        http.StatusNotFound,
		"/stats/prometheus/../../config_dump": http.StatusNotFound,
	} {
		if got := probe(path, nil); got != want {
			t.Errorf("%s: status %d, want %d", path, got, want)
		}
	}

	eventually(t, "the TCP probe succeeds", func() bool { return probe("/app-health/tcp/readyz", nil) == http.StatusOK })
	raw.Close()
	eventually(t, "the TCP probe fails when the port is closed", func() bool { return probe("/app-health/tcp/readyz", nil) == http.StatusServiceUnavailable })
	if got := probe("/app-health/rpc/readyz", nil); got != http.StatusServiceUnavailable {
		t.Errorf("a gRPC service that is unknown: %d", got)
	}
	checks.SetServingStatus("my.Service", grpc_health_v1.HealthCheckResponse_SERVING)
	eventually(t, "the gRPC probe succeeds", func() bool { return probe("/app-health/rpc/readyz", nil) == http.StatusOK })
	checks.SetServingStatus("my.Service", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	eventually(t, "the gRPC probe fails", func() bool { return probe("/app-health/rpc/readyz", nil) == http.StatusServiceUnavailable })

	status, body := get(podIP+":15020", MetricsPath, nil)
	if status != http.StatusOK || !strings.Contains(body, "envoy_server_live") || !strings.Contains(body, "app_requests 1") || strings.Contains(body, "# EOF") {
		t.Errorf("merged metrics: status %d:\n%.500s", status, body)
	}
	if status, body := get(podIP+":15090", MetricsPath, nil); status != http.StatusOK || !strings.Contains(body, "envoy_server_live") || strings.Contains(body, "app_requests") {
		t.Errorf("the proxy's metrics: status %d:\n%.300s", status, body)
	}
	if out, err := os.ReadFile(log.Name()); err != nil || len(out) > 0 {
		t.Errorf("Envoy has something to complain about (%v):\n%s", err, out)
	}
	if status, _ := get("127.0.0.1:15000", "/ready", nil); status != http.StatusOK {
		t.Errorf("admin on loopback: %d", status)
	}
	if status, _ := get(podIP+":15000", "/ready", nil); status != 0 {
		t.Errorf("admin answers on the pod's address: %d", status)
	}
}
