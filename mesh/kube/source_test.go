package kube

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/e2e/kubernetes"
	"github.com/weft-mesh/weft/mesh"
)

func TestMain(m *testing.M) { os.Exit(kit.PrivateNetwork(m)) }

// reader is a Source that runs.
type reader struct {
	t     *testing.T
	store *mesh.Store
	*Source
}

func read(t *testing.T, config *rest.Config) *reader {
	t.Helper()
	store := mesh.NewStore(mesh.Options{})
	s, err := New(Config{REST: config, Store: store, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r := &reader{t, store, s}
	r.eventually("everything is read once", func(*mesh.Snapshot) bool {
		select {
		case <-s.Synced():
			return true
		default:
			return false
		}
	})
	return r
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (r *reader) eventually(what string, ok func(*mesh.Snapshot) bool) {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(r.store.Snapshot()); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("not within 30 s: %s; there is:\n%s", what, strings.Join(contents(r.store.Snapshot()), "\n"))
		}
	}
}

// contents names what a snapshot holds, each with its label rev.
func contents(s *mesh.Snapshot) (out []string) {
	line := func(m mesh.Meta, more ...any) {
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s/%s rev=%s %v", m.Kind, m.Namespace, m.Name, m.Labels["rev"], more)))
	}
	for ns := range s.Namespaces() {
		line(ns.Meta)
	}
	for _, svc := range s.VisibleServices("") {
		line(svc.Meta)
		for _, p := range svc.Ports {
			for _, e := range s.Endpoints(svc, p) {
				out = append(out, fmt.Sprintf("EndpointSlice %s:%d of %s zone %s", e.Address, e.Port, svc.Host, e.Locality.Zone))
			}
		}
		if rule := s.DestinationRule("default", svc); rule != nil {
			line(rule.Meta)
		}
	}
	for w := range s.Workloads() {
		line(w.Meta, w.Addresses, w.ServiceAccount, w.Owner)
		mode, _ := s.ServerMTLS(w, 0)
		out = append(out, fmt.Sprintf("PeerAuthentication of %s/%s: %v", w.Namespace, w.Name, mode))
		for _, g := range s.Gateways(w) {
			line(g.Meta)
		}
	}
	for _, m := range meshKinds {
		for c := range s.Configs(m.name) {
			line(c.Meta)
		}
	}
	for _, vs := range s.VirtualServices("default", "mesh") {
		line(vs.Meta)
	}
	out = append(out, "MeshConfig logs to "+s.Mesh().AccessLogFile)
	slices.Sort(out)
	return slices.Compact(out)
}

// has finds a line that contains all parts.
func has(parts ...string) func(*mesh.Snapshot) bool {
	return func(s *mesh.Snapshot) bool {
		return slices.ContainsFunc(contents(s), func(l string) bool {
			return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(l, p) })
		})
	}
}

func hasNot(parts ...string) func(*mesh.Snapshot) bool {
	h := has(parts...)
	return func(s *mesh.Snapshot) bool { return !h(s) }
}

// cluster is what the other objects of these tests need around them.
const cluster = `
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}
---
apiVersion: v1
kind: Service
metadata: {name: base, namespace: default, labels: {rev: "1"}}
spec: {selector: {app: base}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: base-1
  namespace: default
  labels: {app: base, rev: "1"}
  annotations: {sidecar.istio.io/status: '{}', other.example/x: "1"}
spec: {serviceAccountName: base, nodeName: n1, containers: [{name: c, image: i, ports: [{name: web, containerPort: 8080}]}]}
status: {phase: Running, podIP: 10.244.0.7, podIPs: [{ip: 10.244.0.7}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: base-1, namespace: default, labels: {kubernetes.io/service-name: base}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.0.7], conditions: {ready: true}, nodeName: n1, targetRef: {kind: Pod, name: base-1, namespace: default}}]
`

func TestWhatIsWrittenIsInTheMesh(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	api.InstallDefinitions()
	api.Apply(cluster)
	r := read(t, api.Config())
	r.eventually("what was there before", has("EndpointSlice 10.244.0.7:8080", "zone z1"))

	object := func(apiVersion, kind, spec string) string {
		return "apiVersion: " + apiVersion + "\nkind: " + kind + "\nmetadata: {name: x, namespace: default, labels: {rev: \"REV\"}}\n" + spec
	}
	for _, c := range []struct {
		kind, yaml   string
		change       string // replaces "ONE" in the YAML
		first, later []string
	}{
		{kind: "Namespace", yaml: "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {rev: \"REV\"}}"},
		{kind: "Node", yaml: "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: ONE}}", change: "two",
			first: []string{"10.244.0.7", "zone ONE"}, later: []string{"10.244.0.7", "zone two"}},
		{kind: "Service", yaml: object("v1", "Service", "spec: {ports: [{port: 80}]}")},
		{kind: "Pod", yaml: object("v1", "Pod", "spec: {containers: [{name: c, image: i}]}\nstatus: {podIP: 10.244.0.8}")},
		{kind: "EndpointSlice", change: "9", yaml: `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: x, namespace: default, labels: {kubernetes.io/service-name: base}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.0.20, 10.244.0.3ONE]}]
`, first: []string{"10.244.0.31:8080"}, later: []string{"10.244.0.39:8080"}},
		{kind: "ConfigMap", change: "/two", yaml: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'accessLogFile: ONE'}",
			first: []string{"logs to ONE"}, later: []string{"logs to /two"}},
		{kind: "VirtualService", yaml: object("networking.istio.io/v1", "VirtualService", "spec: {hosts: [base], http: [{route: [{destination: {host: base}}]}]}")},
		{kind: "VirtualService", yaml: object("networking.istio.io/v1alpha3", "VirtualService", "spec: {hosts: [base], http: [{route: [{destination: {host: base}}]}]}")},
		{kind: "DestinationRule", yaml: object("networking.istio.io/v1beta1", "DestinationRule", "spec: {host: base}")},
		{kind: "Gateway", yaml: object("networking.istio.io/v1", "Gateway", "spec: {selector: {app: base}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}")},
		{kind: "ServiceEntry", yaml: object("networking.istio.io/v1", "ServiceEntry", "spec: {hosts: [x.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}")},
		{kind: "Sidecar", yaml: object("networking.istio.io/v1", "Sidecar", "spec: {egress: [{hosts: ['./*']}]}")},
		{kind: "WorkloadEntry", yaml: object("networking.istio.io/v1", "WorkloadEntry", "spec: {address: 192.0.2.1}")},
		{kind: "WorkloadGroup", yaml: object("networking.istio.io/v1", "WorkloadGroup", "spec: {template: {serviceAccount: x}}")},
		{kind: "ProxyConfig", yaml: object("networking.istio.io/v1beta1", "ProxyConfig", "spec: {concurrency: 1}")},
		{kind: "EnvoyFilter", yaml: object("networking.istio.io/v1alpha3", "EnvoyFilter", "spec: {configPatches: []}")},
		{kind: "PeerAuthentication", change: "DISABLE", yaml: strings.ReplaceAll(object("security.istio.io/v1", "PeerAuthentication", "spec: {mtls: {mode: ONE}}"), "ONE", "STRICT"),
			first: []string{"PeerAuthentication of default/base-1: " + fmt.Sprint(mesh.MTLSStrict)}},
		{kind: "RequestAuthentication", yaml: object("security.istio.io/v1", "RequestAuthentication", "spec: {jwtRules: [{issuer: i}]}")},
		{kind: "AuthorizationPolicy", yaml: object("security.istio.io/v1beta1", "AuthorizationPolicy", "spec: {action: DENY}")},
		{kind: "Telemetry", yaml: object("telemetry.istio.io/v1", "Telemetry", "spec: {accessLogging: [{disabled: true}]}")},
		{kind: "WasmPlugin", yaml: object("extensions.istio.io/v1alpha1", "WasmPlugin", "spec: {url: 'file:///x.wasm'}")},
	} {
		t.Run(c.kind, func(t *testing.T) {
			r := &reader{t, r.store, r.Source}
			first := c.first
			if first == nil {
				first = []string{c.kind + " ", "/x rev=1"}
			}
			yaml := strings.ReplaceAll(c.yaml, "REV", "1")
			if c.kind == "EndpointSlice" {
				yaml = strings.ReplaceAll(yaml, "ONE", "1")
			}
			api.Apply(yaml)
			r.eventually("the new object is there", has(first...))
			if c.later != nil || c.first == nil {
				later := c.later
				if later == nil {
					later = []string{c.kind + " ", "/x rev=2"}
				}
				api.Apply(strings.ReplaceAll(strings.ReplaceAll(c.yaml, "REV", "2"), "ONE", c.change))
				r.eventually("the changed object is there", has(later...))
				r.eventually("the former one is not", hasNot(first...))
				first = later
			}
			if c.kind == "Namespace" {
				return // only a controller removes these
			}
			api.Delete(yaml)
			r.eventually("the deleted object is gone", hasNot(first...))
		})
	}
}
