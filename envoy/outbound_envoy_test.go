package envoy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-mesh/weft/redirect"
)

// outboundMesh: two versions of a service outside of the pod, without sidecars; a database that speaks first, on a declared and on
// an undeclared port; a headless service of the same pods.
const outboundMesh = `
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: default, labels: {app: client}, annotations: {sidecar.istio.io/status: "{}"}}
spec: {serviceAccountName: client, containers: [{name: c, image: c}]}
status: {podIP: 10.77.0.2, podIPs: [{ip: 10.77.0.2}, {ip: "fd77::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-v1, namespace: default, labels: {app: web, version: v1}}
spec: {serviceAccountName: web, containers: [{name: c, image: c}]}
status: {podIP: 10.77.0.11, podIPs: [{ip: 10.77.0.11}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-v2, namespace: default, labels: {app: web, version: v2}}
spec: {serviceAccountName: web, containers: [{name: c, image: c}]}
status: {podIP: 10.77.0.12, podIPs: [{ip: 10.77.0.12}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd96::10"]
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-banner, port: 3306}, {name: banner, port: 3307, targetPort: 3306}, {name: any, port: 8888, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: tcp-banner, port: 3306}, {name: banner, port: 3306}, {name: any, port: 8080}]
endpoints:
- {addresses: [10.77.0.11], conditions: {ready: true}, targetRef: {kind: Pod, name: web-v1, namespace: default}}
- {addresses: [10.77.0.12], conditions: {ready: true}, targetRef: {kind: Pod, name: web-v2, namespace: default}}
---
apiVersion: v1
kind: Service
metadata: {name: nodes, namespace: default}
spec: {clusterIP: None, clusterIPs: [None], ports: [{name: http, port: 8080}, {name: tcp, port: 3306}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: nodes-1, namespace: default, labels: {kubernetes.io/service-name: nodes}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: tcp, port: 3306}]
endpoints:
- {addresses: [10.77.0.11], hostname: web-v1, conditions: {ready: true}, targetRef: {kind: Pod, name: web-v1, namespace: default}}
- {addresses: [10.77.0.12], hostname: web-v2, conditions: {ready: true}, targetRef: {kind: Pod, name: web-v2, namespace: default}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: default}
spec:
  host: web
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
`

// A web is both versions of the service.
type web struct {
	l    *lab
	hits map[string]*atomic.Int64 // "v1", "v2": requests that arrived

	failing atomic.Int64 // of v1's answers, every so many are 200, the others 503; 0: all 200
	slow    atomic.Int64 // milliseconds before an answer
	client  *envoyProcess

	how        how
	server     XDS // nil for a state-of-the-world stream
	world      *World
	generation int
}

// how a sidecar gets its configuration.
type how string

const (
	world    how = "state of the world"
	eager    how = "eager"
	onDemand how = "on demand"
)

// inEveryMode runs a test with each kind of sidecar: what a user sees must be the same.
func inEveryMode(t *testing.T, test func(t *testing.T, w *web)) {
	for _, h := range []how{world, eager, onDemand} {
		t.Run(string(h), func(t *testing.T) { test(t, newWeb(t, h)) })
	}
}

func newWeb(t *testing.T, h how) *web {
	w := &web{l: newLab(t), how: h, hits: map[string]*atomic.Int64{"v1": {}, "v2": {}}}
	w.l.redirect(redirect.Default())
	w.l.outside.in(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, a := range []string{"10.77.0.11/24", "10.77.0.12/24", "fd77::11/64"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = syscall.IFA_F_NODAD
			if err := netlink.AddrAdd(eth0, addr); err != nil {
				return err
			}
		}
		return nil
	})
	for version, ip := range map[string]string{"v1": "10.77.0.11", "v2": "10.77.0.12"} {
		server := &http.Server{Handler: w.version(version)}
		go server.Serve(w.l.outside.listen(ip + ":8080"))
		t.Cleanup(func() { server.Close() })
		banner := w.l.outside.listen(ip + ":3306")
		go func() {
			for {
				c, err := banner.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "hello from %s", version)
				c.Close()
			}
		}()
	}
	return w
}

func (w *web) version(version string) http.Handler {
	return http.HandlerFunc(func(out http.ResponseWriter, in *http.Request) {
		n := w.hits[version].Add(1)
		select {
		case <-time.After(time.Duration(w.slow.Load()) * time.Millisecond):
		case <-in.Context().Done():
		}
		if f := w.failing.Load(); version == "v1" && f > 0 && n%f != 0 {
			out.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(out, "%s %s host=%s agent=%s", version, in.URL.Path, in.Host, in.UserAgent())
	})
}

// with gives the client's sidecar the mesh and these documents, and waits until it has them.
func (w *web) with(documents string) {
	w.l.t.Helper()
	w.generation++
	s := snapshotOf(w.l.t, outboundMesh+documents+fmt.Sprintf(generation, w.generation))
	w.world = NewWorld(s, w.world)
	switch {
	case w.how == world:
		sets := append(w.world.Sets(Proxy{
			Kind: Sidecar, Inline: true, Namespace: "default", Pod: "client", ServiceAccount: "client",
			Workload:  s.Workload("default", "client"),
			Addresses: []netip.Addr{w.l.pod.v4, w.l.pod.v6},
		}), w.l.secrets("client"))
		if w.client == nil {
			w.client = w.l.start(w.l.pod, sets...)
		} else {
			w.client.update(sets...)
		}
	case w.client == nil:
		w.serve()
		w.client = w.l.run(w.l.pod, w.l.openDir(), "sidecar~10.77.0.2~client.default~default.svc.cluster.local", "DELTA_GRPC",
			"socket_address: {address: 127.0.0.1, port_value: 15010}")
	default:
		w.server.Publish(w.world)
	}
	// Virtual hosts are the last of a change to be sent.
	w.client.eventually("the mesh's newest state is in use", func() error {
		if _, body := w.get("10.96.0.10:80", "generation.test", "/"); body != fmt.Sprint(w.generation) {
			return fmt.Errorf("%q", body)
		}
		return nil
	})
}

// serve starts the xDS server, with the present World.
func (w *web) serve() {
	w.l.t.Helper()
	w.server = ServeDelta(w.l.t, w.l.pod.listen("127.0.0.1:15010"), w.how == onDemand)
	w.server.Publish(w.world)
}

const generation = `
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: generation, namespace: default}
spec:
  hosts: [generation.test]
  http: [{directResponse: {status: 200, body: {string: "%d"}}}]
`

// get is one request of the app: status, headers and body as they arrive.
func (w *web) get(address, host, path string, header ...string) (*http.Response, string) {
	w.l.t.Helper()
	client := w.l.pod.client()
	client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return w.l.pod.dial(ctx, network, address)
	}
	req, err := http.NewRequest("GET", "http://"+host+path, nil)
	if err != nil {
		w.l.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, connectionEnd(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return res, string(body)
}

// visit is the answer on one line.
func (w *web) visit(path string, header ...string) string {
	w.l.t.Helper()
	res, body := w.get("10.96.0.10:80", "web", path, header...)
	if res == nil {
		return body
	}
	return fmt.Sprintf("%d %s", res.StatusCode, body)
}

// count makes n requests and counts those whose answer contains text.
func (w *web) count(n int, text, path string, header ...string) int {
	w.l.t.Helper()
	got := 0
	for range n {
		if strings.Contains(w.visit(path, header...), text) {
			got++
		}
	}
	return got
}

func (w *web) between(what string, got, low, high int) {
	w.l.t.Helper()
	if got < low || got > high {
		w.l.t.Errorf("%s: %d, want %d to %d", what, got, low, high)
	}
}

func (w *web) route(http string) { w.l.t.Helper(); w.with(vsHead + http) }

const vsHead = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default}
spec:
  hosts: [web]
  http:
`

func TestVirtualServicesRuleTheAppsRequests(t *testing.T) {
	inEveryMode(t, virtualServicesRuleTheAppsRequests)
}

func virtualServicesRuleTheAppsRequests(t *testing.T, w *web) {
	w.with("")
	w.client.eventually("requests reach the service", func() error {
		if got := w.visit("/"); !strings.HasPrefix(got, "200 v") {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	w.between("spread over both versions", w.count(60, "v1", "/"), 10, 50)
	if res, _ := w.get("[fd96::10]:80", "web.default", "/"); res == nil || res.StatusCode != 200 {
		t.Errorf("by the IPv6 address of the service: %v", res)
	}
	if res, _ := w.get("10.96.0.10:80", "web.default.svc.cluster.local:80", "/"); res == nil || res.Header.Get("server") != "envoy" {
		t.Errorf("with the long name and a port: %v", res)
	}
	if _, body := w.get("10.96.0.10:8888", "anything.example.com", "/"); !strings.HasPrefix(body, "v") {
		t.Errorf("undeclared port, foreign name: %s", body)
	}

	w.route(`
  - match: [{headers: {x-canary: {exact: "true"}}}]
    route: [{destination: {host: web, subset: v2}}]
  - match: [{uri: {prefix: /old}}]
    rewrite: {uri: /new, authority: new.example.com}
    headers: {request: {set: {User-Agent: wget}}, response: {add: {x-was: old}}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /frontend}}]
    redirect: {uri: /, authority: frontend, port: 80}
  - match: [{uri: {prefix: /abort}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /late}}]
    fault: {delay: {fixedDelay: 300ms, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /v9}}]
    route: [{destination: {host: web, subset: v9}}]
  - route:
    - {destination: {host: web, subset: v1}, weight: 90}
    - {destination: {host: web, subset: v2}, weight: 10}
`)
	w.client.eventually("new routes", func() error {
		if got := w.visit("/abort"); got != "555 fault filter abort" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	w.between("90 % to v1", w.count(200, "v1", "/"), 165, 195)
	w.between("canary to v2", w.count(20, "v2", "/", "x-canary", "true"), 20, 20)
	if got := w.visit("/old/path"); got != "200 v1 /new/path host=new.example.com agent=wget" {
		t.Errorf("rewritten: %s", got)
	}
	if res, _ := w.get("10.96.0.10:80", "web", "/frontend"); res == nil || res.StatusCode != 301 || res.Header.Get("location") != "http://frontend/" || res.Header.Get("server") != "envoy" {
		t.Errorf("redirect: %v", res)
	}
	start := time.Now()
	// Envoy's timers count from the beginning of the event loop's turn, which may be some milliseconds ago on a busy machine.
	if got := w.visit("/late"); !strings.HasPrefix(got, "200") || time.Since(start) < 270*time.Millisecond {
		t.Errorf("delay: %s after %s", got, time.Since(start))
	}
	if got := w.visit("/v9"); !strings.HasPrefix(got, "503") {
		t.Errorf("missing subset: %s", got)
	}

	w.route(`
  - match: [{uri: {prefix: /timeout}}]
    timeout: 0.2s
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /retry}}]
    retries: {attempts: 4, retryOn: "503"}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /mirror}}]
    mirror: {host: web, subset: v2}
    route: [{destination: {host: web, subset: v1}}]
  - route: [{destination: {host: web, subset: v1}}]
`)
	w.slow.Store(1000)
	w.client.eventually("a timeout", func() error { // the new routes come a moment after the listeners
		if got := w.visit("/timeout"); got != "504 upstream request timeout" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	w.slow.Store(0)
	w.failing.Store(3)
	w.between("an answered 503 is not retried unless asked for", w.count(30, "503", "/"), 15, 25)
	w.between("retried to success", w.count(30, "200", "/retry"), 30, 30)
	w.failing.Store(0)
	before := w.hits["v2"].Load()
	w.between("the primary answers", w.count(20, "200 v1", "/mirror"), 20, 20)
	w.client.eventually("copies arrive at v2", func() error {
		if n := w.hits["v2"].Load() - before; n != 20 {
			return fmt.Errorf("%d copies", n)
		}
		return nil
	})
}

func TestDestinationRulesRuleConnections(t *testing.T) {
	inEveryMode(t, destinationRulesRuleConnections)
}

func destinationRulesRuleConnections(t *testing.T, w *web) {
	rule := func(policy string) {
		t.Helper()
		w.with(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web-a, namespace: default}
spec: {host: web.default.svc.cluster.local, trafficPolicy: ` + policy + "}")
	}
	rule("{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}")
	seen := map[string]bool{}
	for _, user := range []string{"ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal"} {
		version := strings.Fields(w.visit("/", "x-user", user) + " - -")[1]
		seen[version] = true
		w.between("the same pod for "+user, w.count(10, " "+version+" ", "/", "x-user", user), 10, 10)
	}
	if len(seen) != 2 {
		t.Errorf("eight users all went to %v", seen)
	}

	// Two failures in three answers: after the first, v1 is out.
	w.failing.Store(1 << 40)
	rule("{outlierDetection: {consecutive5xxErrors: 1, interval: 100ms, baseEjectionTime: 30s, maxEjectionPercent: 100}}")
	w.client.eventually("the failing pod is ejected", func() error {
		if n := w.count(20, "200 v2", "/"); n != 20 {
			return fmt.Errorf("%d of 20 requests succeed", n)
		}
		return nil
	})
	w.failing.Store(0)

	rule("{connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}}")
	w.slow.Store(100)
	codes := make(chan string, 20)
	for range cap(codes) {
		go func() { codes <- w.visit("/") }()
	}
	rejected := 0
	for range cap(codes) {
		if got := <-codes; strings.HasPrefix(got, "503 upstream connect error or disconnect/reset before headers. reset reason: overflow") {
			rejected++
		}
	}
	w.between("requests beyond the pool's limits", rejected, 1, 18)
	if n := w.client.stat("cluster.outbound|80||web.default.svc.cluster.local.upstream_rq_pending_overflow"); n == 0 {
		t.Errorf("overflow is not counted")
	}
}

func (w *web) banner(address string) (string, time.Duration) {
	start := time.Now()
	c, err := w.l.pod.dial(w.l.t.Context(), "tcp", address)
	if err != nil {
		return connectionEnd(err), time.Since(start)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(c)
	if len(b) == 0 && err != nil {
		return connectionEnd(err), time.Since(start)
	}
	return string(b), time.Since(start)
}

func TestConnectionsThatAreNotHTTP(t *testing.T) { inEveryMode(t, connectionsThatAreNotHTTP) }

func connectionsThatAreNotHTTP(t *testing.T, w *web) {
	w.with("")
	if got, took := w.banner("10.96.0.10:3306"); !strings.HasPrefix(got, "hello from v") || took > 500*time.Millisecond {
		t.Errorf("a server that speaks first, declared tcp: %q after %s", got, took)
	}
	if got, took := w.banner("10.96.0.10:3307"); !strings.HasPrefix(got, "hello from v") || took > 2*time.Second {
		t.Errorf("a server that speaks first, undeclared: %q after %s", got, took)
	}
	for version, ip := range map[string]string{"v1": "10.77.0.11", "v2": "10.77.0.12"} {
		if got, _ := w.banner(ip + ":3306"); got != "hello from "+version {
			t.Errorf("%s of a headless service: %q", version, got)
		}
		if _, body := w.get(ip+":8080", "web-"+version+".nodes", "/"); !strings.HasPrefix(body, version+" ") {
			t.Errorf("HTTP to %s of a headless service: %q", version, body)
		}
	}
	unknown := w.l.outside.listen("10.77.0.1:4444")
	go func() {
		for {
			c, err := unknown.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "unknown")
			c.Close()
		}
	}()
	if got, took := w.banner("10.77.0.1:4444"); got != "unknown" || took > 500*time.Millisecond {
		t.Errorf("an address of nobody: %q after %s", got, took)
	}
	if _, body := w.get("10.77.0.11:8080", "stranger.example.com", "/"); !strings.HasPrefix(body, "v1 ") {
		t.Errorf("a name of nobody: %q", body)
	}
	if got, _ := w.banner("127.0.0.1:15001"); got != "reset" && got != "" {
		t.Errorf("port 15001 by hand: %q", got)
	}

	w.with(`
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web-tcp, namespace: default}
spec:
  hosts: [web]
  tcp:
  - match: [{port: 3306}]
    route: [{destination: {host: web, port: {number: 3306}, subset: v2}}]
`)
	if got, _ := w.banner("10.77.0.1:4444"); got != "reset" && got != "" {
		t.Errorf("an address of nobody, REGISTRY_ONLY: %q", got)
	}
	if res, _ := w.get("10.77.0.11:8080", "stranger.example.com", "/"); res == nil || res.StatusCode != 502 {
		t.Errorf("a name of nobody, REGISTRY_ONLY: %v", res)
	}
	for range 8 {
		if got, _ := w.banner("10.96.0.10:3306"); got != "hello from v2" {
			t.Errorf("tcp route to v2: %q", got)
		}
	}
}
