package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// gatewayPods is a gateway as its users make it: a Deployment whose only container is filled in by injection.
func gatewayPods(name string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {istio: %[1]s}
  ports:
  - {name: http2, port: 80, targetPort: 8080}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {istio: %[1]s}}
  template:
    metadata:
      labels: {app: %[1]s, istio: %[1]s, sidecar.istio.io/inject: "true"}
      annotations: {inject.istio.io/templates: gateway}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - {name: istio-proxy, image: auto}
`, name)
}

// TestS40GatewayTemplateMakesAProxy: the pod says `image: auto` and nothing else, and becomes a gateway in a restricted namespace.
func TestS40GatewayTemplateMakesAProxy(t *testing.T) {
	ns := meshed(t)
	ns.Apply(gatewayPods("own-gateway"))
	ns.WaitRollout("own-gateway")
	if got := ns.readyColumn("own-gateway"); got != "1/1" {
		t.Errorf("READY is %s, want 1/1", got)
	}
	pod := ns.pods("app=own-gateway")[0]
	if c := pod.Spec.Containers[0]; len(pod.Spec.Containers)+len(pod.Spec.InitContainers) != 1 || !strings.Contains(c.Image, "envoyproxy/envoy") {
		t.Errorf("%d containers and %d init containers, the first runs %s; want one, stock Envoy", len(pod.Spec.Containers), len(pod.Spec.InitContainers), c.Image)
	}
	if v := pod.Annotations["weft.dev/redirect"]; v != "" {
		t.Errorf("a gateway's traffic is redirected: %s", v)
	}
}

// TestS39SecondGatewayServesOnlyItsOwn: what is bound to one gateway's label does not answer at the other.
func TestS39SecondGatewayServesOnlyItsOwn(t *testing.T) {
	ns, plain := meshed(t), outside(t)
	withIngress(ns)
	ns.Apply(gatewayPods("my-user-gateway"))
	ns.Deploy(App{Name: "echo"})
	ns.WaitRollout("my-user-gateway")
	for name, at := range map[string]string{"web": "ingressgateway", "own": "my-user-gateway"} {
		ns.Apply(strings.NewReplacer("name: web", "name: "+name, "istio: ingressgateway", "istio: "+at).Replace(gateway(name+".second.example.com")) + `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ` + name + `}
spec:
  hosts: [` + name + `.second.example.com]
  gateways: [` + name + `]
  http:
  - route:
    - destination: {host: echo}
`)
	}
	own := "http://" + ns.host("my-user-gateway") + "/"
	status := func(host, url string) func() error {
		return func() error {
			if r := plain.Call(fromClient, "-H", "Host: "+host+".second.example.com", url)[0]; r.Status != 200 {
				return fmt.Errorf("status %d %s", r.Status, r.Error)
			}
			return nil
		}
	}
	Eventually(t, "the installed gateway serves its own", status("web", ingress+"/"))
	Eventually(t, "the second gateway serves its own", status("own", own))
	for host, url := range map[string]string{"web": own, "own": ingress + "/"} {
		if r := plain.Call(fromClient, "-H", "Host: "+host+".second.example.com", url)[0]; r.Status != 404 {
			t.Errorf("host %s at %s: status %d, want 404", host, url, r.Status)
		}
	}
}

// authority is a CA of a test, and one certificate of it.
type authority struct {
	root, chain, key string // PEM
}

// certificate makes a new CA and a certificate for the host.
func certificate(t *testing.T, host string) authority {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	sign := func(template, parent *x509.Certificate, public *ecdsa.PublicKey, by *ecdsa.PrivateKey) string {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	caKey, key := newKey(), newKey()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA of " + t.Name()}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	root := sign(ca, ca, &caKey.PublicKey, caKey)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{host}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	chain := sign(leaf, ca, &key.PublicKey, caKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return authority{root: root, chain: chain, key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
}

// secret is what `kubectl create secret tls` makes of the certificate.
func (a authority) secret(namespace, name string) string {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\ntype: kubernetes.io/tls\ndata: {tls.crt: %s, tls.key: %s}\n", name, namespace, b64([]byte(a.chain)), b64([]byte(a.key)))
}

// TestS33GatewayCertificateComesFromASecret: the Gateway names a Secret that is made later; it is verified against its CA;
// a new one takes effect without a restart; and while a Secret is missing or useless, other hosts are served.
func TestS33GatewayCertificateComesFromASecret(t *testing.T) {
	ns, plain := meshed(t), outside(t)
	withIngress(ns)
	ns.Deploy(App{Name: "echo"})
	const host = "webapp.istioinaction.io"
	credential := "webapp-credential-" + run
	server := func(host, credential string) string {
		return "  - port: {number: 443, name: https-" + credential + ", protocol: HTTPS}\n    hosts: [" + host + "]\n    tls: {mode: SIMPLE, credentialName: " + credential + "}\n"
	}
	ns.Apply("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: web}\nspec:\n  selector: {istio: ingressgateway}\n  servers:\n" +
		server(host, credential) + server("never."+host, "never-made-"+run) + `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [` + host + `]
  gateways: [web]
  http:
  - route:
    - destination: {host: echo, port: {number: 80}} # else it is the server's, 443
`)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := ns.Cluster.Run(ctx, "", "delete", "secret", "-n", "istio-system", credential); err != nil {
			t.Errorf("cleaning up: %v", err)
		}
	})
	// As curl --cacert ROOT --connect-to ... https://HOST/ does.
	get := func(root string) Result {
		return plain.Call(fromClient, "-no-keepalive", "-connect", "istio-ingressgateway.istio-system:443", "-cacert", root, "https://"+host+"/")[0]
	}
	served := func(root string) func() error {
		return func() error {
			if r := get(root); r.Status != 200 || r.Header("server") != "istio-envoy" {
				return fmt.Errorf("status %d %s", r.Status, r.Error)
			}
			return nil
		}
	}
	first, second := certificate(t, host), certificate(t, host)
	ns.run(first.secret("istio-system", credential), "apply", "-f", "-")
	Eventually(t, "a request that verifies the certificate", served(first.root))
	if r := get(second.root); r.Status != 0 || !strings.Contains(r.Error, "x509") {
		t.Errorf("the certificate was verified by a CA that did not sign it: status %d %s", r.Status, r.Error)
	}

	restarts := gatewayRestarts(ns)
	ns.run(second.secret("istio-system", credential), "apply", "-f", "-")
	start := time.Now()
	Eventually(t, "the new certificate", served(second.root))
	t.Logf("a changed Secret is in force after %v", time.Since(start).Round(10*time.Millisecond))
	if after := gatewayRestarts(ns); after != restarts {
		t.Errorf("the gateway's pods and restarts were %s, and are %s", restarts, after)
	}
	// A key that does not fit leaves what was there.
	broken := authority{chain: first.chain, key: second.key}
	if _, err := ns.Cluster.Run(t.Context(), broken.secret("istio-system", credential), "apply", "-f", "-"); err == nil {
		for range 5 {
			if err := served(second.root)(); err != nil {
				t.Errorf("a Secret whose key does not fit took the host down: %v", err)
			}
		}
	}
}

// gatewayRestarts are the ingress gateway's pods with their restarts.
func gatewayRestarts(ns *Namespace) string {
	var all []string
	for _, p := range system(ns).pods("istio=ingressgateway") {
		restarts := 0
		for _, c := range p.Status.ContainerStatuses {
			restarts += int(c.RestartCount)
		}
		all = append(all, fmt.Sprintf("%s:%d", p.Name, restarts))
	}
	return strings.Join(all, " ")
}

// TestGatewayRolloutLosesNoRequest: a gateway is replaced under load.
func TestGatewayRolloutLosesNoRequest(t *testing.T) {
	ns, plain := meshed(t), outside(t)
	ns.Apply(strings.Replace(gatewayPods("rolling"), "terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds: 20", 1))
	ns.Deploy(App{Name: "echo"})
	ns.WaitRollout("rolling")
	ns.Apply(strings.Replace(echoAt("rolling.example.com"), "istio: ingressgateway", "istio: rolling", 1))
	args := []string{"-H", "Host: rolling.example.com", "http://" + ns.host("rolling") + "/"}
	Eventually(t, "the gateway serves", func() error {
		if r := plain.Call(fromClient, args...)[0]; r.Status != 200 {
			return fmt.Errorf("status %d %s", r.Status, r.Error)
		}
		return nil
	})
	done := make(chan error, 1)
	var results Results
	go func() {
		var err error
		// New connections, as from many clients; those that are kept get `connection: close` and go on elsewhere.
		results, err = plain.TryCall(fromClient, append([]string{"-lean", "-for", "25s", "-rate", "40", "-c", "4", "-no-keepalive"}, args...)...)
		done <- err
	}()
	for range 2 {
		ns.Kubectl("rollout", "restart", "deploy/rolling")
		ns.WaitRollout("rolling")
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	noneFailed(t, "a gateway rolled twice", results, 100)
}
