package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/envoy/bootstrap"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/identity/identitytest"
)

func TestMain(m *testing.M) { os.Exit(kit.PrivateNetwork(m)) }

const issuerName = "https://kubernetes.default.svc"

// controlPlane is a weftd process with its files.
type controlPlane struct {
	t       testing.TB
	issuer  *identitytest.Issuer
	jwks    string
	objects string
	ca      string
	cmd     *exec.Cmd
	log     kit.Output
	done    chan struct{}
}

func newControlPlane(t testing.TB) *controlPlane {
	t.Helper()
	kit.Root(t)
	issuer := identitytest.NewIssuer(t, issuerName, "k1")
	c := &controlPlane{t: t, issuer: issuer, jwks: issuer.JWKSFile(t), objects: t.TempDir(), ca: filepath.Join(t.TempDir(), "ca")}
	c.put("bookinfo", bookinfo)
	t.Cleanup(func() { c.stop(syscall.SIGTERM) })
	return c
}

// put writes one file of objects, atomically.
func (c *controlPlane) put(name, yaml string) {
	c.t.Helper()
	tmp := filepath.Join(c.objects, "."+name)
	if err := os.WriteFile(tmp, []byte(yaml), 0o644); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(c.objects, name+".yaml")); err != nil {
		c.t.Fatal(err)
	}
}

func (c *controlPlane) start(args ...string) {
	c.t.Helper()
	program := kit.Program(c.t, "weftd")
	c.cmd = exec.Command(program, append([]string{"--config", c.objects, "--ca-dir", c.ca, "--jwks", c.jwks, "--token-issuer", issuerName}, args...)...)
	c.cmd.Stderr = &c.log
	if err := kit.Start(c.cmd); err != nil {
		c.t.Fatal(err)
	}
	c.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { cmd.Wait(); close(done) }(c.cmd, c.done)
	c.eventually("weftd is ready", func() bool {
		select {
		case <-c.done:
			c.t.Fatalf("weftd exited:\n%s", c.log.String())
		default:
		}
		r, err := http.Get("http://127.0.0.1:15014/ready")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

func (c *controlPlane) stop(s syscall.Signal) {
	if c.cmd == nil {
		return
	}
	c.cmd.Process.Signal(s)
	select {
	case <-c.done:
	case <-time.After(10 * time.Second):
		c.cmd.Process.Kill()
		<-c.done
		c.t.Errorf("weftd did not stop within 10 s of %s", s)
	}
	c.cmd = nil
	if c.t.Failed() {
		c.t.Logf("weftd:\n%s", c.log.String())
	}
}

func (c *controlPlane) eventually(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// metric reads one sample; 0 when it is not there.
func (c *controlPlane) metric(name string) (v float64) {
	c.t.Helper()
	for line := range strings.Lines(c.get("/metrics")) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			fmt.Sscan(rest, &v)
		}
	}
	return v
}

func (c *controlPlane) get(path string) string {
	c.t.Helper()
	r, err := http.Get("http://127.0.0.1:15014" + path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

// proxy starts the Envoy of pod reviews-1.
func (c *controlPlane) proxy() *kit.Proxy {
	c.t.Helper()
	dir := c.t.TempDir()
	pem, err := os.ReadFile(filepath.Join(c.ca, identity.RootKey))
	if err != nil {
		c.t.Fatal(err)
	}
	files := identity.RootConfigMap(pem)
	files["istio-token"] = c.issuer.Token(c.t, "default", "reviews", "reviews-1", "uid-1", time.Hour)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	template, err := bootstrap.New(bootstrap.Settings{DiscoveryAddress: "127.0.0.1:15012", DiscoverySAN: "istiod.istio-system.svc",
		TokenFile: filepath.Join(dir, "istio-token"), RootDocument: filepath.Join(dir, identity.RootDocumentKey)})
	if err != nil {
		c.t.Fatal(err)
	}
	config, err := template.Build(bootstrap.Params{Kind: bootstrap.Sidecar, App: "reviews"})
	if err != nil {
		c.t.Fatal(err)
	}
	return kit.StartProxy(c.t, config, "127.0.0.1:15000", map[string]string{
		bootstrap.EnvPodName: "reviews-1", "POD_NAMESPACE": "default", "POD_IP": "127.0.0.1", "INSTANCE_IPS": "127.0.0.1", "SERVICE_ACCOUNT": "reviews",
	})
}

const bookinfo = `
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Pod
metadata:
  name: reviews-1
  namespace: default
  uid: uid-1
  labels: {app: reviews, version: v1}
  annotations: {sidecar.istio.io/status: '{"templates":["sidecar"]}', weft.dev/discovery: eager}
spec:
  serviceAccountName: reviews
  nodeName: node
  containers: [{name: reviews, image: reviews, ports: [{containerPort: 9080}]}]
status:
  phase: Running
  podIP: 10.244.0.5
  podIPs: [{ip: 10.244.0.5}]
  conditions: [{type: Ready, status: "True"}]
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: default}
spec: {clusterIP: 10.96.0.20, clusterIPs: [10.96.0.20], selector: {app: ratings}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {clusterIP: 10.96.0.21, clusterIPs: [10.96.0.21], selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-x, namespace: default, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
ports: [{name: http, port: 9080, protocol: TCP}]
endpoints: [{addresses: [10.244.0.5], conditions: {ready: true}, targetRef: {kind: Pod, name: reviews-1, namespace: default, uid: uid-1}}]
`

func virtualService(retry string) string {
	return `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings, namespace: default}
spec:
  hosts: [ratings]
  http:
  - timeout: ` + retry + `
    route: [{destination: {host: ratings}}]
`
}

func TestAProxyIsConfiguredFromFilesAndFollowsThem(t *testing.T) {
	c := newControlPlane(t)
	c.start()
	p := c.proxy()
	p.Live()
	dump := p.Get("/config_dump?include_eds")
	for _, want := range []string{"outbound|9080||ratings.default.svc.cluster.local", "inbound|9080||", `"virtualInbound"`, `"virtualOutbound"`, "PassthroughCluster"} {
		if !strings.Contains(dump, want) {
			t.Errorf("Envoy has no %s", want)
		}
	}
	c.put("ratings", virtualService("3.217s"))
	p.Await("/config_dump", func(page string) bool { return strings.Contains(page, `"3.217s"`) })
	if n := p.Stat("listener_manager.listener_create_failure"); n > 0 {
		t.Errorf("%d listeners failed", n)
	}
	if got := c.get("/debug/rejectz"); strings.TrimSpace(got) != "[]" {
		t.Errorf("rejected: %s", got)
	}
	if got := c.metric("pilot_services"); got != 2 {
		t.Errorf("pilot_services %v", got)
	}

	// A mistake is reported and changes nothing.
	c.put("ratings", strings.Replace(virtualService("4s"), "timeout", "timeOut", 1))
	c.put("other", "apiVersion: v1\nkind: Service\nmetadata: {name: details, namespace: default}\nspec: {clusterIP: 10.96.0.22, ports: [{name: http, port: 9080}]}\n")
	p.Await("/config_dump", func(page string) bool { return strings.Contains(page, "details.default.svc.cluster.local") })
	if !strings.Contains(p.Get("/config_dump"), `"3.217s"`) {
		t.Error("a broken file took the last good configuration away")
	}
}

func TestARuleThatLeadsNowhereIsInTheLog(t *testing.T) {
	c := newControlPlane(t)
	c.start()
	c.proxy().Live()
	c.put("ratings", strings.Replace(virtualService("3s"), "host: ratings", "host: ratings, subset: nope", 1))
	const want = `no DestinationRule defines subset \"nope\"`
	c.eventually("the problem on its page", func() bool { return strings.Contains(c.get("/debug/problemz"), `subset "nope"`) })
	c.stop(syscall.SIGTERM)
	if log := c.log.String(); strings.Count(log, want) != 1 || !strings.Contains(log, "spec.http[0].route[0].destination.subset") {
		t.Errorf("the log does not name it once:\n%s", log)
	}
}

func TestARestartOfTheControlPlaneResendsNothing(t *testing.T) {
	c := newControlPlane(t)
	c.put("ratings", virtualService("3s"))
	c.start()
	p := c.proxy()
	p.Live()
	if n := c.metric(`weft_xds_resources_sent_total{type="cds"}`); n == 0 {
		t.Fatal("nothing was sent in the first place")
	}
	c.stop(syscall.SIGKILL)
	// The outage is long enough for Envoy to have tried, failed and backed off.
	gone := time.Now()
	c.eventually("Envoy has noticed", func() bool { return p.Stat("cluster.xds-grpc.upstream_cx_connect_fail") > 0 })
	c.eventually("5 s have passed", func() bool { return time.Since(gone) > 5*time.Second })
	c.start()
	back := time.Now()
	c.eventually("the proxy said what it has", func() bool {
		return c.metric(`weft_xds_resources_unchanged_total{type="cds"}`) > 0 && c.metric(`weft_xds_resources_unchanged_total{type="sds"}`) == 2
	})
	t.Logf("reconnected %s after the restart", time.Since(back).Round(time.Millisecond))
	// A change proves that the stream works, and bounds what was sent before it.
	c.put("ratings", virtualService("5.5s"))
	p.Await("/config_dump", func(page string) bool { return strings.Contains(page, `"5.500s"`) })
	for typ, want := range map[string]float64{"cds": 0, "eds": 0, "lds": 0, "rds": 0, "vhds": 1, "sds": 0} {
		if n := c.metric(fmt.Sprintf(`weft_xds_resources_sent_total{type=%q}`, typ)); n != want {
			t.Errorf("%s: %v resources were sent after the restart, want %v", typ, n, want)
		}
	}
}

// injected is what the webhook does to a pod: the patch.
func (c *controlPlane) injected() string {
	c.t.Helper()
	pem, err := os.ReadFile(filepath.Join(c.ca, identity.RootKey))
	if err != nil {
		c.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "istiod.istio-system.svc"}}
	defer transport.CloseIdleConnections()
	review := `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"r1","kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},"namespace":"default","operation":"CREATE",
	  "object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"app","namespace":"default"},"spec":{"containers":[{"name":"app","image":"app"}]}}}}`
	r, err := (&http.Client{Transport: transport}).Post("https://127.0.0.1:15017/inject", "application/json", strings.NewReader(review))
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	var answer struct {
		Response struct {
			Allowed bool
			Patch   []byte
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil || !answer.Response.Allowed {
		c.t.Fatalf("%v: %.1000s", err, body)
	}
	return string(answer.Response.Patch)
}

func TestAPodIsInjectedOverHTTPS(t *testing.T) {
	c := newControlPlane(t)
	c.start()
	if patch := c.injected(); !strings.Contains(patch, "istio-proxy") {
		t.Errorf("no sidecar: %.1000s", patch)
	}
}

func TestSettingsOfTheInjectionAreFollowed(t *testing.T) {
	c := newControlPlane(t)
	dir := t.TempDir()
	set := func(values string) {
		t.Helper()
		tmp := filepath.Join(dir, ".values")
		if err := os.WriteFile(tmp, []byte(values), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "values")); err != nil {
			t.Fatal(err)
		}
	}
	set(`{"global": {"proxy": {"resources": {"requests": {"cpu": "7m"}}}}}`)
	c.start("--injection-config", dir)
	if patch := c.injected(); !strings.Contains(patch, `"7m"`) {
		t.Errorf("the settings are not used: %.3000s", patch)
	}
	set(`{"global": {"proxy": {"resources": {"requests": {"cpu": "9m"}}}}}`)
	c.eventually("new settings are used", func() bool { return strings.Contains(c.injected(), `"9m"`) })
	set(`{"global": {"proxy": {"logLevel": "loud"}}}`)
	c.eventually("a mistake is in the log", func() bool { return strings.Contains(c.log.String(), "loud") })
	if patch := c.injected(); !strings.Contains(patch, `"9m"`) {
		t.Errorf("a mistake took the settings away: %.3000s", patch)
	}
}

func TestStartingIsFastAndStoppingIsClean(t *testing.T) {
	c := newControlPlane(t)
	kit.Program(t, "weftd") // not part of the time
	begin := time.Now()
	c.start()
	took := time.Since(begin)
	t.Logf("ready after %s", took.Round(time.Millisecond))
	p := c.proxy()
	p.Live()
	begin = time.Now()
	c.stop(syscall.SIGTERM)
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if log := c.log.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("log:\n%s", log)
	}
}

func TestBadFlagsAndTakenPortsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	jwks := identitytest.NewIssuer(t, issuerName, "k1").JWKSFile(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	half := t.TempDir()
	if err := os.WriteFile(filepath.Join(half, "ca-key.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := []string{"--config", dir, "--ca-dir", filepath.Join(dir, "ca"), "--jwks", jwks, "--token-issuer", issuerName,
		"--xds-address", "127.0.0.1:0", "--plaintext-xds-address", "", "--webhook-address", "127.0.0.1:0", "--monitoring-address", "127.0.0.1:0"}
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"no flags", []string{}, "neither --kube nor --config"},
		{"a path that does not exist", append(good[2:], "--config", dir+"/none"), "no such file"},
		{"no ca-dir", []string{"--config", dir}, "--ca-dir is missing"},
		{"no jwks", []string{"--config", dir, "--ca-dir", dir}, "--jwks is missing"},
		{"no issuer", []string{"--config", dir, "--ca-dir", dir, "--jwks", jwks}, "--token-issuer is missing"},
		{"no audience", append(good, "--token-audience", ""), "--token-audience"},
		{"a broken key set", append(good, "--jwks", broken), "not a JSON Web Key Set"},
		{"a key set that does not exist", append(good, "--jwks", dir+"/jwks.json"), "no such file"},
		{"half an authority", append(good, "--ca-dir", half), "ca-cert.pem"},
		{"a trust domain with capitals", append(good, "--trust-domain", "Acme"), "--trust-domain"},
		{"a certificate of no life", append(good, "--svid-ttl", "0s"), "--svid-ttl"},
		{"a taken port", append(good, "--xds-address", taken.Addr().String()), "is taken by another process"},
		{"no address", append(good, "--webhook-address", "nowhere"), "--webhook-address"},
		{"a log level", append(good, "--log-level", "loud"), "--log-level"},
		{"a log format", append(good, "--log-format", "xml"), "--log-format"},
		{"an unknown flag", append(good, "--nonsense"), "unknown flag"},
		{"an argument", append(good, "x"), "unknown command"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := newCommand()
			cmd.SetArgs(c.args)
			cmd.SetOut(io.Discard)
			cmd.SetErr(io.Discard)
			result := make(chan error, 1)
			go func() { result <- cmd.ExecuteContext(t.Context()) }()
			select {
			case err = <-result:
			case <-time.After(10 * time.Second):
				t.Fatal("weftd runs")
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want it to say %q", err, c.says)
			}
		})
	}
}
