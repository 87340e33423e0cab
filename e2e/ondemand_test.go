package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/mesh"
)

// stranger is a server outside of the mesh.
var stranger = App{Name: "stranger", Version: "outside"}

var strangers fixture

// someoneOutside is a namespace without sidecars, where stranger runs.
func someoneOutside(t *testing.T) *Namespace {
	t.Helper()
	return strangers.of(t, "strangers", []string{restricted}, stranger)
}

// to is a request for any host that leaves the app for port 80 of a server outside of the mesh, whatever the host's name would resolve to.
func (ns *Namespace) to(outside *Namespace, args ...string) []string {
	return append([]string{"-no-keepalive", "-connect", outside.host("stranger") + ":80"}, args...)
}

// doors are Services of their own for everything that the app echo serves: to use one is no use of another.
func doors(names ...string) string {
	var yaml strings.Builder
	for _, name := range names {
		fmt.Fprintf(&yaml, `apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  selector: {app: echo}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: http2, port: 81, targetPort: 8081}
  - {name: https, port: 443, targetPort: 8443}
  - {name: grpc, port: 9000}
  - {name: tcp, port: 9001}
  - {name: tcp-banner, port: 9002}
---
`, name)
	}
	return yaml.String()
}

// knows says whether the sidecar of the client has a cluster for port of a service now.
func (ns *Namespace) knows(service string, port int) bool {
	ns.T.Helper()
	r := ns.Call(fromClient, "http://127.0.0.1:15000/clusters")[0]
	if r.Status != 200 {
		ns.T.Fatalf("the sidecar's admin page: %+v", r)
	}
	return strings.Contains(r.Body, fmt.Sprintf("outbound|%d||%s::", port, ns.host(service)))
}

// TestFirstRequestToANewHost: nobody can tell from the answer that the sidecar had never heard of the host. Each request goes to a service of its own.
func TestFirstRequestToANewHost(t *testing.T) {
	ns := meshed(t)
	ns.Deploy(App{Name: "echo"}, App{Name: "first", Hold: true})
	requests := []struct {
		name string
		args []string // %s is the service
		body string   // contained in the answer
	}{
		{"get", []string{"http://%s/"}, `"method":"GET"`},
		{"full-name", []string{"http://%s.NS.svc.cluster.local:80/"}, `"method":"GET"`},
		{"post", []string{"-X", "POST", "-d", "order", "http://%s/"}, `"body":"order"`},
		{"post-1mb", []string{"-X", "POST", "-size", "1048576", "http://%s/"}, `"bytes":1048576`},
		{"post-10mb", []string{"-X", "POST", "-size", "10485760", "http://%s/"}, `"bytes":10485760`},
		{"http2", []string{"h2c://%s:81/"}, `"proto":"HTTP/2.0"`},
		{"http2-post", []string{"-X", "POST", "-size", "1048576", "h2c://%s:81/"}, `"bytes":1048576`},
		{"websocket", []string{"-d", "hello", "ws://%s/ws"}, " hello"},
		{"grpc", []string{"grpc://%s:9000"}, "SERVING"},
		{"grpc-stream", []string{"-d", "hello", "talk://%s:9000"}, "v1 hello,v1 hello,v1 hello"},
		{"tcp", []string{"-d", "hello", "tcp://%s:9001"}, " hello"},
		{"tcp-banner", []string{"-d", "hello", "banner://%s:9002"}, " ready"},
		{"tls", []string{"https://%s:443/"}, `"method":"GET"`},
	}
	var services []string
	for _, r := range requests {
		services = append(services, "new-"+r.name)
	}
	const parallel = "new-parallel"
	ns.Apply(doors(append(services, parallel)...))
	// Who starts now is told of services that were there before, by whatever way it learns.
	ns.Deploy(client)
	if discoveryOf(t) == mesh.OnDemand && ns.knows("new-get", 80) {
		t.Fatal("the sidecar knows a host before anybody asked for it")
	}
	for _, r := range requests {
		t.Run(r.name, func(t *testing.T) {
			args := []string{"-timeout", "20s"}
			for _, a := range r.args {
				args = append(args, strings.NewReplacer("%s", "new-"+r.name, "NS", ns.Name).Replace(a))
			}
			// The second one over the sidecar's connection of the first.
			for i, got := range ns.Call(fromClient, append([]string{"-n", "2"}, args...)...) {
				if got.Error != "" || !strings.Contains(got.Body, r.body) {
					got.Body = fmt.Sprintf("%.300s", got.Body)
					t.Fatalf("request %d: %+v, want %q in the body", i+1, got, r.body)
				}
			}
		})
	}
	rs := ns.Call(fromClient, "-n", "40", "-c", "40", "http://"+parallel+"/")
	if got := rs.Statuses(); got["200"] != 40 {
		t.Errorf("40 first requests at the same time: %v, %v", got, rs.Failures())
	}
}

// TestHostThatIsMadeAfterItWasAskedFor: a name that nobody has goes where the app sends it; when a service of that name comes, requests reach it.
func TestHostThatIsMadeAfterItWasAskedFor(t *testing.T) {
	ns, outside := meshed(t), someoneOutside(t)
	ns.Deploy(App{Name: "echo"}, client)
	ask := ns.to(outside, "http://later."+ns.Name+"/")
	if r := ns.Call(fromClient, ask...)[0]; r.Status != 200 || r.Version != "outside" {
		t.Fatalf("a host that nobody has: %+v, want it passed through", r)
	}
	for range 2 { // it comes, goes, and comes
		ns.Apply(doors("later"))
		Eventually(t, "the new service answers", func() error {
			if r := ns.Call(fromClient, ask...)[0]; r.Status != 200 || r.Version != "v1" {
				return fmt.Errorf("status %d by %q %s", r.Status, r.Version, r.Error)
			}
			return nil
		})
		ns.Kubectl("delete", "service", "later")
		Eventually(t, "without the service, requests are passed through", func() error {
			if r := ns.Call(fromClient, ask...)[0]; r.Status != 200 || r.Version != "outside" {
				return fmt.Errorf("status %d by %q %s", r.Status, r.Version, r.Error)
			}
			return nil
		})
	}
}

// TestExternalServices: ServiceEntries, also for all hosts below a domain, and rules for them.
func TestExternalServices(t *testing.T) {
	ns, outside := meshed(t), someoneOutside(t)
	ns.Deploy(client)
	domain := ns.Name + ".example.com"
	ns.Apply(fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api}
spec:
  hosts: [api.%[1]s]
  exportTo: ["."]
  ports: [{number: 80, name: http, protocol: HTTP}]
  location: MESH_EXTERNAL
  resolution: STATIC
  endpoints: [{address: %[2]s, ports: {http: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api.%[1]s]
  exportTo: ["."]
  http:
  - match: [{uri: {prefix: /blocked}}]
    fault: {abort: {httpStatus: 451, percentage: {value: 100}}}
    route: [{destination: {host: api.%[1]s}}]
  - route: [{destination: {host: api.%[1]s}}]
    headers: {response: {set: {x-rule: api}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec:
  hosts: ["*.wild.%[1]s"]
  exportTo: ["."]
  ports: [{number: 80, name: http, protocol: HTTP}]
  location: MESH_EXTERNAL
  resolution: NONE
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wild}
spec:
  hosts: ["*.wild.%[1]s"]
  exportTo: ["."]
  http:
  - route: [{destination: {host: "*.wild.%[1]s"}}]
    headers: {response: {set: {x-rule: wild}}}
`, domain, outside.pods("app=stranger")[0].Status.PodIP))
	for _, c := range []struct {
		url, rule string
		status    int
	}{
		{"http://api." + domain + "/", "api", 200},
		{"http://api." + domain + "/blocked", "", 451},
		{"http://a.wild." + domain + "/", "wild", 200},
		{"http://b.wild." + domain + "/", "wild", 200},
	} {
		Eventually(t, c.url, func() error {
			r := ns.Call(fromClient, ns.to(outside, c.url)...)[0]
			if r.Status != c.status || r.Header("x-rule") != c.rule || c.status == 200 && r.Version != "outside" {
				return fmt.Errorf("status %d, x-rule %q, by %q: %s %.200s", r.Status, r.Header("x-rule"), r.Version, r.Error, r.Body)
			}
			return nil
		})
	}
}

// TestUnknownHostsByPolicy: REGISTRY_ONLY answers 502 at once, whichever way the sidecar learns the mesh, and serves a host that comes later.
func TestUnknownHostsByPolicy(t *testing.T) {
	ns, outside := alone(t), someoneOutside(t)
	other := NewNamespace(t, ns.Cluster, "other", injected, restricted, withDiscovery(theOther(meshDiscovery(t))))
	both := []*Namespace{ns, other}
	ns.withMeshConfig("outboundTrafficPolicy: {mode: REGISTRY_ONLY}")
	for _, ns := range both {
		ns.Deploy(App{Name: "echo"}, client)
	}
	for _, ns := range both {
		ask := ns.to(outside, "http://later."+ns.Name+"/")
		Eventually(t, "unknown hosts are refused", func() error {
			if r := ns.Call(fromClient, ask...)[0]; r.Status != 502 || r.Millis > 5000 {
				return fmt.Errorf("status %d after %.0f ms by %q %s", r.Status, r.Millis, r.Version, r.Error)
			}
			return nil
		})
		if r := ns.Call(fromClient, "http://echo/")[0]; r.Status != 200 {
			t.Errorf("a host of the mesh: %+v", r)
		}
		ns.Apply(doors("later"))
		Eventually(t, "the new service answers", func() error {
			if r := ns.Call(fromClient, ask...)[0]; r.Status != 200 || r.Version != "v1" {
				return fmt.Errorf("status %d by %q %s", r.Status, r.Version, r.Error)
			}
			return nil
		})
	}
}

// TestAppThatAsksForTenThousandHosts: it gets an answer each time, keeps its own mesh, and nobody else notices.
func TestAppThatAsksForTenThousandHosts(t *testing.T) {
	t.Parallel()
	outside, ns := someoneOutside(t), NewNamespace(t, onCluster(t), "", injected, restricted, withDiscovery(mesh.OnDemand))
	neighbour := App{Name: "neighbour", Hold: true}
	ns.Deploy(App{Name: "echo"}, client, neighbour)
	ns.Apply(doors("new", "new-to-neighbour"))
	if r := ns.Call(fromClient, "http://echo/")[0]; r.Status != 200 {
		t.Fatalf("before: %+v", r)
	}
	for round := range 10 {
		rs := ns.Call(fromClient, ns.to(outside, "-n", "1000", "-c", "16", "-lean", fmt.Sprintf("http://scan-%d-{n}.example.com/", round))...)
		if got := rs.Versions(); got["outside"] != 1000 {
			t.Fatalf("hosts that nobody has, passed through: %v, %v", rs.Statuses(), rs.Failures())
		}
	}
	for from, url := range map[string]string{fromClient: "http://echo/", neighbour.Deployment(): "http://new-to-neighbour/"} {
		if r := ns.Call(from, url)[0]; r.Status != 200 {
			t.Errorf("%s from %s afterwards: %+v", url, from, r)
		}
	}
	if r := ns.Call(fromClient, "http://new/")[0]; r.Status != 200 {
		t.Errorf("a host that is new, afterwards: %+v", r)
	}
	for _, pod := range append(ns.pods("app=client"), ns.pods("app=neighbour")...) {
		for _, c := range pod.Status.InitContainerStatuses {
			if c.RestartCount > 0 {
				t.Errorf("pod %s: %s was restarted", pod.Name, c.Name)
			}
		}
	}
}

// TestPodsOfAWorkloadKnowWhatTheirSistersLearned: also when the control plane and all of the workload's pods start anew at the same time.
func TestPodsOfAWorkloadKnowWhatTheirSistersLearned(t *testing.T) {
	alone := alone(t)
	ns := NewNamespace(t, alone.Cluster, "on-demand", injected, restricted, withDiscovery(mesh.OnDemand))
	ns.Deploy(App{Name: "echo"}, client)
	ns.Apply(doors("used", "unused"))
	if ns.knows("used", 80) {
		t.Fatal("a service is known before it was asked for")
	}
	ns.answered("http://used/")
	Eventually(t, "TCP answers", func() error {
		if r := ns.Call(fromClient, "-d", "hello", "tcp://used:9001")[0]; r.Error != "" {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	check := func(when string) {
		t.Helper()
		// Another replica of the control plane may serve the new pod; it learns of it a few seconds later, from the record, and tells at once.
		for _, port := range []int{80, 9001} {
			Eventually(t, fmt.Sprintf("%s the sidecar knows what was used on port %d", when, port), func() error {
				if !ns.knows("used", port) {
					return errors.New("it does not")
				}
				return nil
			})
		}
		if ns.knows("unused", 80) {
			t.Errorf("%s the sidecar knows a service that nobody used", when)
		}
	}
	check("at first")
	ns.Kubectl("rollout", "restart", "deploy/"+fromClient)
	ns.WaitRollout(fromClient)
	check("in a new pod")
	system := system(ns)
	system.Kubectl("rollout", "restart", "deploy/istiod")
	ns.Kubectl("delete", "pod", "-l", "app=client", "--wait=false")
	system.WaitRollout("istiod")
	ns.WaitRollout(fromClient)
	check("when everything was restarted")
	if rs := ns.Call(fromClient, "-n", "10", "-c", "10", "http://used/"); rs.Statuses()["200"] != 10 {
		t.Errorf("first requests then: %v", rs.Failures())
	}
}
