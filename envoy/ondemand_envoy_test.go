package envoy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// onDemandMesh adds names of all kinds to the lab's mesh. All of them lead to the two pods.
const onDemandMesh = `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: default}
spec:
  hosts: ["*.wild.example"]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.77.0.11, ports: {http: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: exact, namespace: default}
spec:
  hosts: [api.wild.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.77.0.12, ports: {http: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: calm, namespace: default}
spec:
  hosts: ["*.calm.example"]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.77.0.11, ports: {http: 8080}}]
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: default}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop.example]
  http:
  - match: [{uri: {prefix: /mirror}}]
    mirror: {host: web, subset: v2}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /nobody}}]
    route: [{destination: {host: nobody.default.svc.cluster.local}}]
  - match: [{uri: {prefix: /split}}]
    route: [{destination: {host: web, subset: v1}, weight: 50}, {destination: {host: web, subset: v2}, weight: 50}]
  - match: [{uri: {prefix: /delegated}}]
    delegate: {name: part}
  - route: [{destination: {host: web, subset: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: part, namespace: default}
spec:
  http: [{rewrite: {uri: /was}, route: [{destination: {host: web, subset: v1}}]}]
`

func TestAnyNameOfAHostBringsItWhenItIsFirstUsed(t *testing.T) {
	w := newWeb(t, onDemand)
	w.with(onDemandMesh)
	for _, c := range []struct{ what, address, host, path, want string }{
		{"short name", "10.96.0.10:80", "web", "/", "200 v"},
		{"long name with port", "10.96.0.10:80", "web.default.svc.cluster.local:80", "/", "200 v"},
		{"name with namespace, upper case", "10.96.0.10:80", "Web.DEFAULT", "/", "200 v"},
		{"trailing dot", "10.96.0.10:80", "web.default.svc.cluster.local.", "/", "200 v"},
		{"address", "10.96.0.10:80", "10.96.0.10", "/", "200 v"},
		{"IPv6 address and port", "[fd96::10]:80", "[fd96::10]:80", "/", "200 v"},
		{"pod of a headless service", "10.77.0.12:8080", "web-v2.nodes:8080", "/", "200 v2"},
		{"headless service", "10.77.0.11:8080", "nodes.default", "/", "200 v1"},
		{"undeclared protocol, any name", "10.96.0.10:8888", "whatever.example", "/", "200 v"},
		{"name under a wildcard", "10.96.0.10:80", "one.wild.example", "/", "200 v1"},
		{"exact name under the wildcard", "10.96.0.10:80", "api.wild.example", "/", "200 v2"},
		{"another name under the wildcard", "10.96.0.10:80", "two.wild.example", "/", "200 v1"},
		{"wildcard of its own", "10.96.0.10:80", "a.calm.example", "/", "200 v1"},
		{"another", "10.96.0.10:80", "b.calm.example", "/", "200 v1"},
		{"alias", "10.96.0.10:80", "other", "/", "200 v"},
		{"host of a VirtualService alone", "10.96.0.10:80", "shop.example", "/", "200 v2"},
		{"delegated route", "10.96.0.10:80", "shop.example", "/delegated", "200 v1 /was"},
		{"destination that does not exist", "10.96.0.10:80", "shop.example", "/nobody", "503"},
		{"stranger", "10.77.0.11:8080", "stranger.example", "/", "200 v1"},
		{"stranger with a port", "10.77.0.12:8080", "stranger2.example:8080", "/", "200 v2"},
	} {
		begin := time.Now()
		res, body := w.get(c.address, c.host, c.path)
		got := body
		if res != nil {
			got = fmt.Sprint(res.StatusCode, " ", body)
		}
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q is answered %q after %s, want %s...", c.what, c.host, got, time.Since(begin), c.want)
		}
	}
	for range 3 { // of a missing destination, no request must wait
		if _, body := w.get("10.96.0.10:80", "shop.example", "/nobody"); strings.Contains(body, "timeout") {
			t.Errorf("a missing destination, again: %s", body)
		}
	}
	before := w.hits["v2"].Load()
	if _, body := w.get("10.96.0.10:80", "shop.example", "/mirror"); !strings.HasPrefix(body, "v1 /mirror") {
		t.Errorf("mirrored: %s", body)
	}
	w.client.eventually("the copy arrives", func() error {
		if w.hits["v2"].Load() == before {
			return fmt.Errorf("no copy")
		}
		return nil
	})
	split := map[string]int{}
	for range 40 {
		_, body := w.get("10.96.0.10:80", "shop.example", "/split")
		split[body[:2]]++
	}
	if split["v1"]+split["v2"] != 40 || split["v1"] == 0 || split["v2"] == 0 {
		t.Errorf("weighted destinations: %v", split)
	}
	if n := w.client.stat("cluster_manager.warming_clusters"); n != 0 {
		t.Errorf("%d clusters are warming", n)
	}
}

// What nobody has becomes somebody, and back, while the app keeps asking.
func TestAStrangerThatJoinsTheMeshIsFoundByThoseWhoAskedForIt(t *testing.T) {
	w := newWeb(t, onDemand)
	w.with("")
	ask := func() string { _, body := w.get("10.77.0.11:8080", "late.example", "/"); return body }
	if got := ask(); !strings.HasPrefix(got, "v1") {
		t.Fatalf("as a stranger: %s", got)
	}
	late := `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: late, namespace: default}
spec:
  hosts: [late.example]
  ports: [{number: 8080, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.77.0.12, ports: {http: 8080}}]
`
	w.with(late)
	if got := ask(); !strings.HasPrefix(got, "v2") {
		t.Errorf("in the mesh: %s", got)
	}
	w.with("")
	if got := ask(); !strings.HasPrefix(got, "v1") {
		t.Errorf("a stranger again: %s", got)
	}
}

func TestFirstRequestsOfAllShapesAreHeldAndPassedOn(t *testing.T) {
	w := newWeb(t, onDemand)
	echo := &http.Server{Handler: http.HandlerFunc(func(out http.ResponseWriter, in *http.Request) {
		if in.Header.Get("Upgrade") != "" {
			c, rw, err := out.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			rw.Flush()
			line, _ := rw.ReadString('\n')
			io.WriteString(rw, "you said "+line)
			rw.Flush()
			return
		}
		n, err := io.Copy(io.Discard, in.Body)
		fmt.Fprintf(out, "%s HTTP/%d %d %v", in.Method, in.ProtoMajor, n, err)
	})}
	echo.Protocols = new(http.Protocols)
	echo.Protocols.SetHTTP1(true)
	echo.Protocols.SetUnencryptedHTTP2(true)
	go echo.Serve(w.l.outside.listen("10.77.0.11:9090"))
	t.Cleanup(func() { echo.Close() })
	// Each shape has a host of its own, so that each is a first request.
	host := 0
	documents := ""
	for host = range 12 {
		documents += fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: echo-%d, namespace: default}
spec:
  hosts: [echo-%d.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.77.0.11, ports: {http: 9090}}]
`, host, host)
	}
	w.with(documents)
	host = 0
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return w.l.pod.dial(ctx, network, "10.96.0.10:80")
	}
	send := func(method string, body io.Reader, header ...string) string {
		t.Helper()
		req, err := http.NewRequest(method, fmt.Sprintf("http://echo-%d.example/", host), body)
		host++
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true, ExpectContinueTimeout: 20 * time.Second}}
		return answer(c.Do(req))
	}
	for _, size := range []int{1, 1 << 10, 64 << 10, 3 << 20, 16 << 20} {
		if got, want := send("POST", bytes.NewReader(make([]byte, size))), fmt.Sprintf("200 POST HTTP/1 %d <nil>", size); got != want {
			t.Errorf("%d bytes: %s", size, got)
		}
	}
	if got := send("PUT", io.LimitReader(zeros{}, 2<<20)); got != "200 PUT HTTP/1 2097152 <nil>" {
		t.Errorf("chunked: %s", got)
	}
	if got := send("POST", bytes.NewReader(make([]byte, 1<<20)), "Expect", "100-continue"); got != "200 POST HTTP/1 1048576 <nil>" {
		t.Errorf("after 100-continue: %s", got)
	}
	if got := send("GET", nil); got != "200 GET HTTP/1 0 <nil>" {
		t.Errorf("GET: %s", got)
	}

	// HTTP/2, as gRPC speaks it: several first requests on one connection.
	h2 := &http.Transport{DialContext: dial, Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	defer h2.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			res, err := (&http.Client{Timeout: 30 * time.Second, Transport: h2}).Post("http://echo-8.example/", "application/grpc", bytes.NewReader(make([]byte, i*100_000)))
			if got, want := answer(res, err), fmt.Sprintf("200 POST HTTP/2 %d <nil>", i*100_000); got != want {
				t.Errorf("HTTP/2: %s, want %s", got, want)
			}
		})
	}
	wg.Wait()

	c, err := w.l.pod.dial(t.Context(), "tcp", "10.96.0.10:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: echo-9.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n")
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("WebSocket: %v %v", res, err)
	}
	io.WriteString(c, "hello\n")
	if line, err := r.ReadString('\n'); line != "you said hello\n" {
		t.Errorf("over the WebSocket: %q %v", line, err)
	}
}

func answer(res *http.Response, err error) string {
	if err != nil {
		return connectionEnd(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return connectionEnd(err)
	}
	return fmt.Sprint(res.StatusCode, " ", string(b))
}

// zeros are without end, and of a length that nobody knows before.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// The control plane is away when an app first uses a host: the app waits, is told why when it takes too long, and is served when the
// control plane is back in time. What was used before works all the while.
func TestWhileTheControlPlaneIsAway(t *testing.T) {
	w := newWeb(t, onDemand)
	w.with(onDemandMesh)
	if got := w.visit("/"); !strings.HasPrefix(got, "200") {
		t.Fatalf("before: %s", got)
	}
	w.server.Stop()
	if got := w.visit("/"); !strings.HasPrefix(got, "200") {
		t.Errorf("a known host: %s", got)
	}
	ask := func(host string) (string, time.Duration) {
		begin := time.Now()
		c := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return w.l.pod.dial(ctx, network, "10.96.0.10:80")
		}}}
		got := answer(c.Get("http://" + host + "/"))
		return got, time.Since(begin)
	}
	got, took := ask("shop.example")
	if !strings.HasPrefix(got, "504") || took < holdAtMost-time.Second {
		t.Errorf("a host never used before: %s after %s, want 504 after %s", got, took, holdAtMost)
	}
	if got, took := w.banner("10.96.0.10:3306"); got != "reset" && got != "" {
		t.Errorf("a TCP service never used before: %q after %s", got, took)
	}
	back := make(chan string)
	go func() { got, _ := ask("a.calm.example"); back <- got }()
	w.serve()
	if got := <-back; !strings.HasPrefix(got, "200 v1") {
		t.Errorf("a host asked for while the control plane was away, which came back: %s", got)
	}
	w.client.eventually("the host that was given up is there", func() error {
		if got, _ := ask("shop.example"); !strings.HasPrefix(got, "200 v2") {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
}

// istioctl proxy-config routes, Kiali and weft read the virtual hosts of a sidecar from its own admin page.
func TestVirtualHostsOfTheirOwnAreShownInTheirTable(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *web) {
		w.with("")
		if got := w.visit("/"); !strings.HasPrefix(got, "200") {
			t.Fatal(got)
		}
		page := w.l.pod.get("http://127.0.0.1:15000/config_dump?resource=dynamic_route_configs&name_regex=80")
		for _, want := range []string{"80/web.default.svc.cluster.local", `"web.default.svc"`, "outbound|80||web.default.svc.cluster.local"} {
			if !strings.Contains(page, want) {
				t.Errorf("the route dump does not show %s:\n%.2000s", want, page)
			}
		}
		if unasked := strings.Contains(w.l.pod.get("http://127.0.0.1:15000/clusters"), "outbound|3306||web"); unasked != (w.how != onDemand) {
			t.Errorf("clusters that nobody has asked for are there: %t", unasked)
		}
	})
}

// A host outside that only its server name tells: the connection waits for the cluster.
func TestTLSPassesByServerName(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *web) {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(out http.ResponseWriter, in *http.Request) {
			fmt.Fprint(out, "for ", in.TLS.ServerName)
		}))
		server.Listener.Close()
		server.Listener = w.l.outside.listen("10.77.0.11:8443")
		server.StartTLS()
		t.Cleanup(server.Close)
		w.with(`
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: secure, namespace: default}
spec:
  hosts: [secure.example]
  ports: [{number: 8443, name: tls, protocol: TLS}]
  resolution: NONE
  location: MESH_EXTERNAL
`)
		ask := func(name string) string {
			c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
				DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
					return w.l.pod.dial(ctx, network, "10.77.0.11:8443")
				}}}
			return answer(c.Get("https://" + name + "/"))
		}
		if got := ask("secure.example"); got != "200 for secure.example" {
			t.Errorf("a host of the mesh: %s", got)
		}
		if got := ask("stranger.example"); got != "reset" {
			t.Errorf("a name that nobody has, REGISTRY_ONLY: %s", got)
		}
	})
}
