package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy"
	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/e2e/kubernetes"
	"github.com/weft-mesh/weft/envoy/bootstrap"
	"github.com/weft-mesh/weft/identity"
)

// replica is a weftd process that reads an API server.
type replica struct {
	t    testing.TB
	base int // its ports are base+10, +12, +14, +17
	cmd  *exec.Cmd
	logs string // file
	done chan struct{}
}

// startReplica runs weftd with the rights that deploy/ gives it and no others.
func startReplica(t testing.TB, api *kubernetes.APIServer, base int, args ...string) *replica {
	t.Helper()
	return startReplicaAs(t, api, "istiod", base, args...)
}

// startReplicaAs is startReplica with the rights of another service account: that of a revision.
func startReplicaAs(t testing.TB, api *kubernetes.APIServer, account string, base int, args ...string) *replica {
	t.Helper()
	r := &replica{t: t, base: base, done: make(chan struct{})}
	kubeconfig := api.Kubeconfig(api.Token("istio-system", account, "", ""))
	r.cmd = exec.Command(kit.Program(t, "weftd"), append([]string{"--kube", "--kubeconfig", kubeconfig,
		"--xds-address", r.address(12), "--plaintext-xds-address", r.address(10), "--monitoring-address", r.address(14), "--webhook-address", r.address(17)}, args...)...)
	r.logs = filepath.Join(t.TempDir(), "log")
	log, err := os.Create(r.logs)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r.cmd.Stderr = log
	r.cmd.Env = append(os.Environ(), fmt.Sprintf("POD_NAME=istiod-%d", base))
	if err := kit.Start(r.cmd); err != nil {
		t.Fatal(err)
	}
	go func() { r.cmd.Wait(); close(r.done) }()
	t.Cleanup(func() {
		r.cmd.Process.Kill()
		<-r.done
		if t.Failed() {
			t.Logf("weftd %d:\n%s", base, r.log())
		}
	})
	return r
}

func (r *replica) log() string {
	text, err := os.ReadFile(r.logs)
	if err != nil {
		r.t.Error(err)
	}
	return string(text)
}

func (r *replica) address(port int) string { return fmt.Sprintf("127.0.0.1:%d", r.base+port) }

func (r *replica) ready() bool {
	select {
	case <-r.done:
		r.t.Fatalf("weftd exited:\n%s", r.log())
	default:
	}
	resp, err := http.Get("http://" + r.address(14) + "/ready")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// servesUnder reports whether the replica's xDS port shows a certificate that roots vouch for.
func (r *replica) servesUnder(roots []byte) bool {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return false
	}
	c, err := tls.Dial("tcp", r.address(12), &tls.Config{RootCAs: pool, ServerName: "istiod.istio-system.svc", NextProtos: []string{"h2"}})
	if err != nil {
		return false
	}
	return c.Close() == nil
}

const webhooks = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: istio-sidecar-injector, labels: {istio.io/rev: default}}
webhooks:
- name: ours.sidecar-injector.istio.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  clientConfig: {service: {name: istiod, namespace: istio-system, path: /inject}}
- name: theirs.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  clientConfig: {service: {name: other, namespace: istio-system}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: istio-validator, labels: {istio.io/rev: default}}
webhooks:
- name: rev.validation.istio.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  clientConfig: {service: {name: istiod, namespace: istio-system, path: /validate}}
`

// newCluster is an API server with what an installation puts there.
func newCluster(t testing.TB) *kubernetes.APIServer {
	t.Helper()
	api := kubernetes.StartAPIServer(t)
	api.Apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}")
	install(t, api, deploy.Base, "", "ClusterRole")
	install(t, api, deploy.Istiod, "", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ConfigMap")
	return api
}

// install applies what a chart has of the given kinds.
func install(t testing.TB, api *kubernetes.APIServer, chart, values string, kinds ...string) {
	t.Helper()
	var v map[string]any
	if err := yaml.Unmarshal([]byte(values), &v); err != nil {
		t.Fatal(err)
	}
	r, err := deploy.Render(chart, deploy.Release{Name: chart, Namespace: "istio-system"}, v)
	if err != nil {
		t.Fatal(err)
	}
	api.Apply(string(r.YAML(kinds...)))
}

func get[T any, P interface {
	*T
	client.Object
}](c client.Client, namespace, name string) *T {
	var o T
	if c.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, P(&o)) != nil {
		return nil
	}
	return &o
}

func TestTwoReplicasThatStartTogetherAgree(t *testing.T) {
	api := newCluster(t)
	api.InstallDefinitions()
	api.Apply(webhooks)
	a, b := startReplica(t, api, 20000), startReplica(t, api, 21000)
	eventually(t, "both are ready", func() bool { return a.ready() && b.ready() })

	c := api.Client()
	secret := get[corev1.Secret](c, "istio-system", "istio-ca-secret")
	if secret == nil {
		t.Fatal("there is no Secret istio-ca-secret")
	}
	roots := secret.Data[identity.RootKey]
	if !a.servesUnder(roots) || !b.servesUnder(roots) {
		t.Fatal("not both replicas use the authority in the Secret")
	}

	holder := func() string {
		lease := get[coordinationv1.Lease](c, "istio-system", "weftd-default")
		if lease == nil || lease.Spec.HolderIdentity == nil {
			return ""
		}
		return *lease.Spec.HolderIdentity
	}
	rooted := func(namespace string) bool {
		m := get[corev1.ConfigMap](c, namespace, "istio-ca-root-cert")
		return m != nil && m.Data[identity.RootKey] == string(roots) && m.Data[identity.RootDocumentKey] != ""
	}
	for _, ns := range []string{"default", "istio-system", "kube-system"} {
		eventually(t, "the root is in namespace "+ns, func() bool { return rooted(ns) })
	}
	eventually(t, "caBundles", func() bool {
		m := get[admissionv1.MutatingWebhookConfiguration](c, "", "istio-sidecar-injector")
		v := get[admissionv1.ValidatingWebhookConfiguration](c, "", "istio-validator")
		if len(m.Webhooks[1].ClientConfig.CABundle) > 0 {
			t.Fatal("a webhook that is not ours was changed")
		}
		return bytes.Equal(m.Webhooks[0].ClientConfig.CABundle, roots) && bytes.Equal(v.Webhooks[0].ClientConfig.CABundle, roots)
	})
	leader, other := a, b
	if strings.HasPrefix(holder(), "istiod-21000") {
		leader, other = b, a
	} else if !strings.HasPrefix(holder(), "istiod-20000") {
		t.Fatalf("nobody leads: %q", holder())
	}
	if n := strings.Count(a.log(), "this replica leads") + strings.Count(b.log(), "this replica leads"); n != 1 {
		t.Fatalf("%d replicas lead", n)
	}

	api.Apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: later}")
	eventually(t, "the root is in a new namespace", func() bool { return rooted("later") })
	api.Delete("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-ca-root-cert, namespace: default}")
	eventually(t, "a deleted root is restored", func() bool { return rooted("default") })
	api.Apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-ca-root-cert, namespace: default}\ndata: {x: y}")
	eventually(t, "a changed root is restored", func() bool { return rooted("default") })
	api.Apply(webhooks) // without caBundle
	eventually(t, "a removed caBundle is restored", func() bool {
		return bytes.Equal(get[admissionv1.MutatingWebhookConfiguration](c, "", "istio-sidecar-injector").Webhooks[0].ClientConfig.CABundle, roots)
	})

	leader.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, "the other one leads", func() bool { return strings.HasPrefix(holder(), fmt.Sprintf("istiod-%d", other.base)) })
	api.Apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: after}")
	eventually(t, "the new leader works", func() bool { return rooted("after") })
	<-leader.done
	if code := leader.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the leader ended with status %d", code)
	}
}

func TestAnAuthorityOfOnesOwnIsUsedAndReplaced(t *testing.T) {
	api := newCluster(t)
	// Real material, as another mesh made it.
	given := func() (yaml string, roots []byte) {
		dir := identity.Dir(filepath.Join(t.TempDir(), "ca"))
		if _, err := identity.Open(context.Background(), dir, "cluster.local"); err != nil {
			t.Fatal(err)
		}
		m, err := dir.Load(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(map[string]string{"ca-cert.pem": string(m.Cert), "ca-key.pem": string(m.Key), "cert-chain.pem": string(m.Cert), "root-cert.pem": string(m.Roots)})
		if err != nil {
			t.Fatal(err)
		}
		return "apiVersion: v1\nkind: Secret\nmetadata: {name: cacerts, namespace: istio-system}\nstringData: " + string(data), m.Roots
	}
	first, roots := given()
	api.Apply(first)
	r := startReplica(t, api, 20000)
	eventually(t, "ready", r.ready)
	if !r.servesUnder(roots) {
		t.Fatal("the given authority is not used")
	}
	c := api.Client()
	if get[corev1.Secret](c, "istio-system", "istio-ca-secret") != nil {
		t.Error("an authority was made although one was given")
	}
	second, newRoots := given()
	api.Apply(second)
	eventually(t, "the replaced authority is used", func() bool { return r.servesUnder(newRoots) })
	eventually(t, "sidecars are told", func() bool {
		m := get[corev1.ConfigMap](c, "default", "istio-ca-root-cert")
		return m != nil && m.Data[identity.RootKey] == string(newRoots)
	})
}

// A proxy with a token of the API server gets its configuration and certificate, keeps them
// while the API server is away, and moves to the other replica when its own one stops.
func TestAProxyWithATokenOfTheAPIServer(t *testing.T) {
	api := newCluster(t)
	api.InstallDefinitions()
	api.Apply(bookinfo)
	api.Apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: reviews, namespace: default}")
	r := startReplica(t, api, 20000, "--drain", "2s")
	eventually(t, "ready", r.ready)

	dir := t.TempDir()
	var root *corev1.ConfigMap
	eventually(t, "the root is there", func() bool {
		root = get[corev1.ConfigMap](api.Client(), "default", "istio-ca-root-cert")
		return root != nil
	})
	files := root.Data
	files["istio-token"] = api.Token("default", "reviews", "reviews-1", "istio-ca")
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	template, err := bootstrap.New(bootstrap.Settings{DiscoveryAddress: r.address(12), DiscoverySAN: "istiod.istio-system.svc",
		TokenFile: filepath.Join(dir, "istio-token"), RootDocument: filepath.Join(dir, identity.RootDocumentKey)})
	if err != nil {
		t.Fatal(err)
	}
	config, err := template.Build(bootstrap.Params{Kind: bootstrap.Sidecar, App: "reviews"})
	if err != nil {
		t.Fatal(err)
	}
	proxy := kit.StartProxy(t, config, "127.0.0.1:15000", map[string]string{
		bootstrap.EnvPodName: "reviews-1", "POD_NAMESPACE": "default", "POD_IP": "127.0.0.1", "INSTANCE_IPS": "127.0.0.1", "SERVICE_ACCOUNT": "reviews",
	})
	proxy.Live()
	proxy.Await("/certs", func(page string) bool { return strings.Contains(page, "spiffe://cluster.local/ns/default/sa/reviews") })
	const ratings = "outbound|9080||ratings.default.svc.cluster.local"
	has := func(cluster string) func(string) bool {
		return func(page string) bool { return strings.Contains(page, cluster) }
	}
	proxy.Await("/clusters", has(ratings))

	api.Kill()
	if !r.ready() {
		t.Error("not ready because the API server is away, although proxies can be served")
	}
	if !has(ratings)(proxy.Get("/clusters")) {
		t.Error("the proxy lost its configuration")
	}
	api.Start()
	api.Apply("apiVersion: v1\nkind: Service\nmetadata: {name: later, namespace: default}\nspec: {ports: [{name: http, port: 9080}]}")
	proxy.Await("/clusters", has("outbound|9080||later.default.svc.cluster.local"))

	r.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, "readiness is off", func() bool {
		resp, err := http.Get("http://" + r.address(14) + "/ready")
		if err != nil {
			t.Fatal("the replica ended before it was taken out of service: ", err)
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	connected := has("xds-grpc::" + r.address(12) + "::rq_active::1")
	if page := proxy.Get("/clusters"); !connected(page) {
		t.Errorf("the stream ended at once:\n%s", page)
	}
	<-r.done
	if code := r.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("weftd ended with status %d", code)
	}
	startReplica(t, api, 20000)
	proxy.Await("/clusters", connected)
}

// The API server calls the webhook by its Service and believes it only because the leader
// wrote the caBundle.
func TestPodsAreInjectedThroughTheAPIServer(t *testing.T) {
	api := newCluster(t)
	// No kube-proxy here: the Service's address is put on the loopback.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 96, 0, 100), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrAdd(lo, address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.AddrDel(lo, address); err != nil {
			t.Error(err)
		}
	})
	api.Apply(`
apiVersion: v1
kind: Service
metadata: {name: istiod, namespace: istio-system}
spec: {clusterIP: 10.96.0.100, ports: [{name: https-webhook, port: 20017}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {istio-injection: enabled}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: istio-sidecar-injector, labels: {istio.io/rev: default}}
webhooks:
- name: namespace.sidecar-injector.istio.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  clientConfig: {service: {name: istiod, namespace: istio-system, path: /inject, port: 20017}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  namespaceSelector: {matchLabels: {istio-injection: enabled}}
`)
	r := startReplica(t, api, 20000, "--webhook-address", "10.96.0.100:20017")
	eventually(t, "ready", r.ready)
	c := api.Client()
	var pod *corev1.Pod
	var refused error
	deadline := time.Now().Add(30 * time.Second)
	for {
		pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "x"}, Spec: corev1.PodSpec{
			ServiceAccountName: "default", // the admission plugin that sets it is off here
			Containers:         []corev1.Container{{Name: "x", Image: "x"}},
		}}
		if refused = c.Create(context.Background(), pod); refused == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the API server still does not trust the webhook: %v", refused)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if len(pod.Spec.InitContainers) == 0 || pod.Spec.InitContainers[0].Name != "istio-proxy" {
		t.Errorf("no sidecar: %+v", pod.Spec)
	}
	if pod.Annotations["sidecar.istio.io/status"] == "" {
		t.Error("no annotation sidecar.istio.io/status")
	}
}
