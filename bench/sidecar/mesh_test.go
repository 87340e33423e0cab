package sidecar

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/mesh"
)

const (
	used      = 3  // services that the app uses, and that its workload has asked for before the measured pod starts
	newHosts  = 50 // services that it then uses for the first time
	changes   = 10 // of one kind
	between   = 300 * time.Millisecond
	restarts  = 3
	meshSpace = "bench" // namespace of the services
)

// figures of one sidecar. Memory is of Envoy's process, in bytes; times are processor time of all its threads unless said otherwise.
type figures struct {
	private   int64         // Private_Dirty: heap and written pages of files, the part that a pod costs its node. (Linux: /proc/PID/smaps_rollup)
	anonymous int64         // Anonymous: heap and stacks alone
	resident  int64         // Rss: with the pages of the program, which all sidecars of a node share
	toReady   time.Duration // from its start until the redirect proof passed
	empty     time.Duration // the same program in the same minute with nothing but an admin port, until that answers: what no configuration can save
	first     time.Duration // wall time of the first request to a new host, median
	later     time.Duration // wall time of the next request to it, median
	route     time.Duration // for one changed VirtualService of a host that is used
	elsewhere time.Duration // for one changed VirtualService of a host that is not
	endpoint  time.Duration // for one more or less endpoint of a host that is used
}

// BenchmarkSidecarInAMesh measures the sidecar of an app that uses three services, in meshes of several sizes, told everything and on demand. All services
// of the mesh have one endpoint with mutual TLS. What the workload asked for is known from a pod before.
//
//	go test -run '^$' -bench SidecarInAMesh -benchtime 1x -timeout 30m ./bench/sidecar
func BenchmarkSidecarInAMesh(b *testing.B) {
	s := up(b)
	s.run("{apiVersion: v1, kind: Namespace, metadata: {name: bench, labels: {istio-injection: enabled}}}", "apply", "-f", "-")
	s.run(`{apiVersion: v1, kind: Pod, metadata: {name: echo, namespace: bench, labels: {app: echo}, annotations: {weft.dev/discovery: eager}}, spec: {containers: [{name: app, image: "docker.io/weftmesh/testapp:1",
		args: [serve], readinessProbe: {httpGet: {path: /healthz, port: 8080}}}]}}`, "apply", "-f", "-")
	s.run("", "-n", "bench", "wait", "--for=condition=Ready", "pod/echo", "--timeout=60s")
	address := s.run("", "-n", "bench", "get", "pod", "echo", "-o", "jsonpath={.status.podIP}")

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "services\tdiscovery\tprivate MB\tanonymous MB\tRSS MB\tCPU to ready ms\tempty Envoy ms\tfirst request ms\tnext ms\tCPU: route ms\tother's route ms\tendpoint ms\t")
	for _, services := range sizes(b) {
		for _, discovery := range []mesh.Discovery{mesh.Eager, mesh.OnDemand} {
			b.Run(fmt.Sprintf("services=%d/%s", services, discovery), func(b *testing.B) {
				var f figures
				for b.Loop() {
					f = (&bench{b, s.weft, s.state, s.dir, s.client}).sidecar(services, discovery, address)
				}
				ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
				mb := func(n int64) float64 { return float64(n) / 1e6 }
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(mb(f.private), "private-MB")
				b.ReportMetric(ms(f.toReady), "cpu-to-ready-ms")
				b.ReportMetric(ms(f.empty), "empty-envoy-ms")
				b.ReportMetric(ms(f.first), "first-request-ms")
				fmt.Fprintf(w, "%d\t%s\t%.1f\t%.1f\t%.1f\t%.0f\t%.0f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t\n", services, discovery, mb(f.private), mb(f.anonymous), mb(f.resident),
					ms(f.toReady), ms(f.empty), ms(f.first), ms(f.later), ms(f.route), ms(f.elsewhere), ms(f.endpoint))
			})
		}
	}
	w.Flush()
	fmt.Print("\n", table.String(), "\n")
}

// sizes are those of WEFT_BENCH_SERVICES, such as "10,1000".
func sizes(b *testing.B) (sizes []int) {
	text := os.Getenv("WEFT_BENCH_SERVICES")
	if text == "" {
		return []int{10, 100, 1000, 5000}
	}
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 10 {
			b.Fatalf("WEFT_BENCH_SERVICES=%s: want numbers of at least 10, with commas between them", text)
		}
		sizes = append(sizes, n)
	}
	return sizes
}

// workloads counts the cases measured, -count times each.
var workloads int

// sidecar measures one case.
func (s *bench) sidecar(services int, discovery mesh.Discovery, endpoint string) (f figures) {
	s.mesh(services, endpoint)
	workloads++
	account := fmt.Sprintf("app-%d", workloads) // a workload of its own: it has asked for nothing yet
	s.run("{apiVersion: v1, kind: ServiceAccount, metadata: {name: "+account+", namespace: bench}}", "apply", "-f", "-")
	start := func(name string) (times, *app) {
		t, err := follow(s.b.Context(), s.client, s.dir, "bench", name, func() {
			s.run(fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: bench, annotations: {weft.dev/discovery: %s}},
				spec: {serviceAccountName: %s, containers: [{name: app, image: "docker.io/weftmesh/testapp:1", args: [hold]}]}}`, name, discovery, account), "apply", "-f", "-")
		})
		if err != nil {
			s.b.Fatal(err)
		}
		return t, s.app(name)
	}
	stop := func(name string) { s.run("", "-n", "bench", "delete", "pod", name, "--grace-period=0", "--force") }

	_, a := start("learns")
	for i := range used {
		a.request(host(i))
	}
	stop("learns")
	var cpu, empty []time.Duration
	for i := range restarts {
		empty = append(empty, s.empty())
		t, again := start(fmt.Sprintf("measured-%d", i))
		cpu = append(cpu, t.cpu)
		if a = again; i < restarts-1 {
			stop(fmt.Sprintf("measured-%d", i))
		}
	}
	defer stop(fmt.Sprintf("measured-%d", restarts-1))
	f.toReady, f.empty = median(cpu), median(empty)
	for i := range used {
		a.request(host(i))
	}
	f.private, f.anonymous, f.resident = a.memory()

	idle := a.during(func(int) {})
	cost := func(change func(i int)) time.Duration { return max(0, a.during(change)-idle) / changes }
	f.route = cost(func(i int) { s.write("route", route(host(0), i)) })
	f.elsewhere = cost(func(i int) { s.write("route-elsewhere", route(host(services-1), i)) })
	f.endpoint = cost(func(i int) { s.write("slice-0", slice(0, endpoint, i%2 == 0)) })

	var first, later []time.Duration
	for i := used; i < min(used+newHosts, services-1); i++ {
		first = append(first, a.request(host(i)))
		later = append(later, a.request(host(i)))
	}
	f.first, f.later = median(first), median(later)
	return f
}

// empty is the processor time of an Envoy without configuration until its admin port answers.
func (s *bench) empty() time.Duration {
	s.b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.b.Fatal(err)
	}
	admin := l.Addr().(*net.TCPAddr)
	l.Close()
	p := kit.StartProxy(s.b, fmt.Sprintf("admin: {address: {socket_address: {address: %s, port_value: %d}}}", admin.IP, admin.Port), admin.String(), nil)
	defer p.Stop()
	p.Live()
	cpu, _, err := process(p.PID()).processor()
	if err != nil {
		s.b.Fatal(err)
	}
	return cpu
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

func host(i int) string { return fmt.Sprintf("svc-%d.%s", i, meshSpace) }

// write gives weftd an object that the sandbox's API server does not have: the sandbox would make addresses and names for thousands of services, which is
// not what is measured.
func (s *bench) write(name, yaml string) {
	path := filepath.Join(s.dir.Objects(), "bench-"+name+".yaml")
	temporary := filepath.Join(s.dir.Objects(), ".bench.tmp")
	if err := os.WriteFile(temporary, []byte(yaml), 0o644); err != nil {
		s.b.Fatal(err)
	}
	if err := os.Rename(temporary, path); err != nil {
		s.b.Fatal(err)
	}
}

// mesh makes the mesh one of n services, and waits until weftd has it.
func (s *bench) mesh(n int, endpoint string) {
	var services, slices strings.Builder
	for i := range n {
		fmt.Fprintf(&services, `{apiVersion: v1, kind: Service, metadata: {name: svc-%d, namespace: %s}, spec: {clusterIP: 10.96.%d.%d, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
`, i, meshSpace, 128+i/250, i%250+1)
		if i > 0 {
			slices.WriteString(slice(i, endpoint, false) + "---\n")
		}
	}
	s.write("services", services.String())
	s.write("slices", slices.String())
	s.write("slice-0", slice(0, endpoint, false))
	s.write("route", route(host(0), 0))
	s.write("route-elsewhere", route(host(n-1), 0))
	want := fmt.Sprintf("outbound|80||svc-%d.%s.svc.cluster.local", n-1, meshSpace)
	gone := fmt.Sprintf("outbound|80||svc-%d.%s.svc.cluster.local", n, meshSpace)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		// The echo pod is told everything, so what it has is what weftd has.
		clusters := s.run("", "-n", "bench", "exec", "echo", "-c", "app", "--", "testapp", "call", fmt.Sprintf("http://127.0.0.1:15000/clusters?filter=svc-(%d|%d)%%5C.", n-1, n))
		if strings.Contains(clusters, want+"::") && !strings.Contains(clusters, gone+"::") {
			return
		}
		if time.Now().After(deadline) {
			s.b.Fatalf("a sidecar that is told everything does not have %d services", n)
		}
	}
}

// slice is the one endpoint of a service, or two.
func slice(i int, endpoint string, two bool) string {
	second := ""
	if two {
		second = ", {addresses: [10.244.255.254]}"
	}
	return fmt.Sprintf(`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: svc-%d, namespace: %s, labels: {kubernetes.io/service-name: svc-%d}},
 addressType: IPv4, ports: [{name: http, port: 8080, protocol: TCP}], endpoints: [{addresses: ["%s"]}%s]}
`, i, meshSpace, i, endpoint, second)
}

// route is a VirtualService, another one for each number.
func route(host string, number int) string {
	name, _, _ := strings.Cut(host, ".")
	return fmt.Sprintf(`{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: %[1]s, namespace: %[2]s},
 spec: {hosts: [%[1]s], http: [{timeout: %[3]ds, route: [{destination: {host: %[1]s}}]}]}}
`, name, meshSpace, 30+number)
}

// app stands for the app of a pod: requests are made in its network namespace, over one connection.
type app struct {
	b     *testing.B
	envoy process
	conn  net.Conn
	read  *bufio.Reader
}

func (s *bench) app(pod string) *app {
	s.b.Helper()
	uid := s.run("", "-n", "bench", "get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
	netns := filepath.Join(s.dir.Pods(), "netns", uid)
	pid, err := envoyIn(netns)
	if err != nil {
		s.b.Fatal(err)
	}
	conn, err := dialIn(s.b.Context(), netns, "10.96.128.1:80")
	if err != nil {
		s.b.Fatal(err)
	}
	s.b.Cleanup(func() { conn.Close() })
	return &app{s.b, pid, conn, bufio.NewReader(conn)}
}

// dialIn connects from inside a network namespace.
func dialIn(ctx context.Context, netns, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := os.Open(netns)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		var r result
		if r.err = err; err == nil {
			r.conn, r.err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
		done <- r
	}()
	r := <-done
	return r.conn, r.err
}

// request makes one request to a host and returns how long it took.
func (a *app) request(host string) time.Duration {
	a.b.Helper()
	begin := time.Now()
	if err := a.conn.SetDeadline(begin.Add(30 * time.Second)); err != nil {
		a.b.Fatal(err)
	}
	if _, err := fmt.Fprintf(a.conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		a.b.Fatal(err)
	}
	response, err := http.ReadResponse(a.read, nil)
	if err != nil {
		a.b.Fatal(err)
	}
	var body strings.Builder
	if _, err := bufio.NewReader(response.Body).WriteTo(&body); err != nil {
		a.b.Fatal(err)
	}
	took := time.Since(begin)
	if response.StatusCode != http.StatusOK {
		a.b.Fatalf("%s answered %s: %s", host, response.Status, body.String())
	}
	return took
}

// during is the processor time of Envoy while a number of changes is made.
func (a *app) during(change func(i int)) time.Duration {
	a.b.Helper()
	before, _, err := a.envoy.processor()
	if err != nil {
		a.b.Fatal(err)
	}
	tick := time.NewTicker(between)
	defer tick.Stop()
	for i := range changes {
		change(i + 1)
		<-tick.C
	}
	after, _, err := a.envoy.processor()
	if err != nil {
		a.b.Fatal(err)
	}
	return after - before
}

// memory reads /proc/PID/smaps_rollup.
func (a *app) memory() (private, anonymous, resident int64) {
	a.b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", a.envoy))
	if err != nil {
		a.b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kb int64
		name, rest, _ := strings.Cut(line, ":")
		if _, err := fmt.Sscan(rest, &kb); err != nil {
			continue // the first line is a range of addresses
		}
		switch name {
		case "Private_Dirty":
			private = kb << 10
		case "Anonymous":
			anonymous = kb << 10
		case "Rss":
			resident = kb << 10
		}
	}
	return private, anonymous, resident
}
