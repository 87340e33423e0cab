// Package xds measures the control plane with many proxies: what it costs to
// connect them, and how long a change takes until the last of them has it. The server runs
// here; the proxies are lean clients in a process of their own, so that their work is not
// counted as the server's.
//
//	go test -run '^$' -bench . -benchtime 3x ./bench/xds
package xds

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	clientnetworking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/identity/identitytest"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/xds"
)

const (
	proxies   = 200
	services  = 1000
	endpoints = 5
)

func TestMain(m *testing.M) {
	if path := os.Getenv("WEFT_BENCH_PROXIES"); path != "" {
		if err := runProxies(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// view is the server's Mesh.
type view struct {
	*envoy.World
	snapshot *mesh.Snapshot
}

func (v view) Workload(namespace, name string) *mesh.Workload {
	return v.snapshot.Workload(namespace, name)
}

// plane is a control plane with a synthetic mesh.
type plane struct {
	store  *mesh.Store
	server *xds.Server
	world  *envoy.World
	setup  string // file that tells the proxies where to connect
}

// setup is what the process of the proxies reads.
type setup struct {
	Address string
	Root    []byte
	Tokens  []string
	Names   []string // of endpoints to subscribe to
	Routes  []string
}

func objectMeta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + "/" + name)}
}

func service(i int) *corev1.Service {
	return &corev1.Service{ObjectMeta: objectMeta("bench", fmt.Sprintf("svc-%04d", i)), Spec: corev1.ServiceSpec{
		ClusterIP: fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
		Selector: map[string]string{"app": fmt.Sprintf("svc-%04d", i)},
	}}
}

func slice(i, shift int) *discoveryv1.EndpointSlice {
	name, port, protocol, ready := "http", int32(8080), corev1.ProtocolTCP, true
	meta := objectMeta("bench", fmt.Sprintf("svc-%04d-x", i))
	meta.Labels = map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("svc-%04d", i)}
	s := &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}}}
	for e := range endpoints {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+i/250, i%250, e+1+shift)}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	return s
}

func virtualService(i int, header string) *clientnetworking.VirtualService {
	v := &clientnetworking.VirtualService{ObjectMeta: objectMeta("bench", fmt.Sprintf("svc-%04d", i))}
	v.Spec.Hosts = []string{fmt.Sprintf("svc-%04d", i)}
	v.Spec.Http = []*networking.HTTPRoute{{
		Headers: &networking.Headers{Response: &networking.Headers_HeaderOperations{Set: map[string]string{"x-version": header}}},
		Route:   []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: fmt.Sprintf("svc-%04d", i)}}},
	}}
	return v
}

func pod(i int) *corev1.Pod {
	meta := objectMeta("bench", fmt.Sprintf("client-%d", i))
	meta.Annotations = map[string]string{"sidecar.istio.io/status": `{"templates":["sidecar"]}`}
	meta.Labels = map[string]string{"app": "client"}
	return &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{ServiceAccountName: "client"}, Status: corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.1.%d.%d", i/250, i%250+1), PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.1.%d.%d", i/250, i%250+1)}}}}
}

func (p *plane) apply(b *testing.B, list ...runtime.Object) {
	b.Helper()
	var objects []mesh.Object
	for _, o := range list {
		objects = append(objects, mesh.Object{Object: o})
	}
	if err := p.store.Apply(objects...); err != nil {
		b.Fatal(err)
	}
}

// publish does what weftd does with a snapshot, without the debounce.
func (p *plane) publish(since time.Time) {
	s := p.store.Snapshot()
	p.world = envoy.NewWorld(s, p.world)
	p.server.Publish(view{p.world, s}, since)
}

func newPlane(b *testing.B) *plane {
	b.Helper()
	issuer := identitytest.NewIssuer(b, "https://kubernetes.default.svc", "k1")
	quiet := slog.New(slog.DiscardHandler)
	keys, err := identity.OpenKeys(b.Context(), issuer.JWKSFile(b), identity.KeyOptions{}, quiet)
	if err != nil {
		b.Fatal(err)
	}
	authority, err := identity.Open(b.Context(), identity.Dir(b.TempDir()), "cluster.local")
	if err != nil {
		b.Fatal(err)
	}
	p := &plane{store: mesh.NewStore(mesh.Options{}), server: xds.NewServer(xds.Config{
		Verifier: &identity.Verifier{Keys: keys, Issuer: issuer.Name, Audience: "istio-ca"}, Authority: authority, TrustDomain: "cluster.local", Log: quiet,
	})}
	objects := []runtime.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bench"}}}
	for i := range services {
		objects = append(objects, service(i), slice(i, 0))
	}
	for i := range proxies {
		objects = append(objects, pod(i))
	}
	p.apply(b, objects...)
	p.publish(time.Now())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.server.Serve(context.Background(), l, &tls.Config{GetCertificate: identity.NewServing(authority, "localhost").Certificate})
	}()
	b.Cleanup(func() { p.server.Stop(); <-done })

	s := setup{Address: l.Addr().String(), Root: authority.Roots()}
	for i := range proxies {
		s.Tokens = append(s.Tokens, issuer.Token(b, "bench", "client", fmt.Sprintf("client-%d", i), fmt.Sprintf("bench/client-%d", i), time.Hour))
	}
	for _, set := range p.world.Sets(envoy.Proxy{Kind: envoy.Sidecar, Namespace: "bench", Pod: "client-0", ServiceAccount: "client", Workload: p.store.Snapshot().Workload("bench", "client-0")}) {
		for _, r := range set.Resources[envoy.Endpoints] {
			s.Names = append(s.Names, r.Name)
		}
		for _, r := range set.Resources[envoy.Route] {
			s.Routes = append(s.Routes, r.Name)
		}
	}
	data, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	p.setup = b.TempDir() + "/setup.json"
	if err := os.WriteFile(p.setup, data, 0o600); err != nil {
		b.Fatal(err)
	}
	return p
}

// crowd is the process of the proxies.
type crowd struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func (p *plane) crowd(b *testing.B) *crowd {
	b.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "WEFT_BENCH_PROXIES="+p.setup)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return &crowd{cmd, bufio.NewScanner(out)}
}

// await waits for a line of the proxies.
func (c *crowd) await(b *testing.B, want string) {
	b.Helper()
	for c.lines.Scan() {
		if strings.TrimSpace(c.lines.Text()) == want {
			return
		}
	}
	b.Fatalf("the proxies ended before %q: %v", want, c.lines.Err())
}

func (c *crowd) stop() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// cpu is the time that this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// peak is the largest resident memory of this process so far, in MB.
func peak(b *testing.B) float64 {
	b.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	var kb float64
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			fmt.Sscan(rest, &kb)
		}
	}
	return kb / 1024
}

// BenchmarkConnect: all proxies connect at once over TLS and get everything, their certificates included.
func BenchmarkConnect(b *testing.B) {
	p := newPlane(b)
	var spent time.Duration
	for b.Loop() {
		before := cpu(b)
		c := p.crowd(b)
		c.await(b, "connected")
		spent += cpu(b) - before
		b.StopTimer()
		c.stop()
		b.StartTimer()
	}
	b.ReportMetric(spent.Seconds()*1000/float64(b.N)/proxies, "server-cpu-ms/proxy")
	b.ReportMetric(peak(b), "peak-MB")
}

// change measures from a change in the store until the last proxy has it.
func change(b *testing.B, line string, next func(i int) runtime.Object) {
	p := newPlane(b)
	p.apply(b, next(0))
	p.publish(time.Now())
	c := p.crowd(b)
	defer c.stop()
	c.await(b, "connected")
	var spent time.Duration
	for i := 1; b.Loop(); i++ {
		before := cpu(b)
		p.apply(b, next(i))
		p.publish(time.Now())
		c.await(b, fmt.Sprintf("%s %d", line, i))
		spent += cpu(b) - before
	}
	b.ReportMetric(spent.Seconds()*1e6/float64(b.N)/proxies, "server-cpu-us/proxy")
}

func BenchmarkEndpointChange(b *testing.B) {
	change(b, "EDS", func(i int) runtime.Object { return slice(7, i%200) })
}

func BenchmarkVirtualServiceChange(b *testing.B) {
	change(b, "RDS", func(i int) runtime.Object { return virtualService(7, fmt.Sprint(i)) })
}
