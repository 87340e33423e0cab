package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/envoy/bootstrap"
	"github.com/weft-mesh/weft/identity"
)

// certificate is one that a user would make: self-signed, for a name.
type certificate struct{ cert, key string }

func makeCertificate(t testing.TB, name string) certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"shop.example.com"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return certificate{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))}
}

// secretYAML is a Secret of the gateway's namespace; pairs are keys and values.
func secretYAML(name string, pairs ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: edge}\ndata:\n", name)
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "  %s: %s\n", pairs[i], base64.StdEncoding.EncodeToString([]byte(pairs[i+1])))
	}
	return b.String()
}

const edge = `
apiVersion: v1
kind: Namespace
metadata: {name: edge}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: edge, namespace: edge}
---
apiVersion: v1
kind: Pod
metadata:
  name: edge-1
  namespace: edge
  uid: uid-edge
  labels: {istio: edge}
  annotations: {sidecar.istio.io/status: '{"templates":["gateway"]}'}
spec:
  serviceAccountName: edge
  containers: [{name: istio-proxy, image: auto}]
status: {phase: Running, podIP: 127.0.0.1, podIPs: [{ip: 127.0.0.1}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: shop, namespace: default}
spec:
  selector: {istio: edge}
  servers:
  - {port: {number: 8443, name: simple, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: SIMPLE, credentialName: shop}}
  - {port: {number: 8443, name: mutual, protocol: HTTPS}, hosts: [mutual.example.com], tls: {mode: MUTUAL, credentialName: mutual}}
  - {port: {number: 8443, name: optional, protocol: HTTPS}, hosts: [optional.example.com], tls: {mode: OPTIONAL_MUTUAL, credentialName: optional}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: ["*"]
  gateways: [shop]
  http: [{directResponse: {status: 200, body: {string: shop}}}]
`

// gatewayProxy starts the Envoy of pod edge-1.
func gatewayProxy(t testing.TB, xds string, files map[string]string) *kit.Proxy {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	template, err := bootstrap.New(bootstrap.Settings{DiscoveryAddress: xds, DiscoverySAN: "istiod.istio-system.svc",
		TokenFile: filepath.Join(dir, "istio-token"), RootDocument: filepath.Join(dir, identity.RootDocumentKey)})
	if err != nil {
		t.Fatal(err)
	}
	config, err := template.Build(bootstrap.Params{Kind: bootstrap.Router, App: "edge"})
	if err != nil {
		t.Fatal(err)
	}
	return kit.StartProxy(t, config, "127.0.0.1:15000", map[string]string{
		bootstrap.EnvPodName: "edge-1", "POD_NAMESPACE": "edge", "POD_IP": "127.0.0.1", "INSTANCE_IPS": "127.0.0.1", "SERVICE_ACCOUNT": "edge",
	})
}

// shows is the common name of the certificate that a gateway's server shows, or why it shows none. own is the client's certificate.
func shows(host string, own *certificate) string {
	config := &tls.Config{ServerName: host, InsecureSkipVerify: true}
	if own != nil {
		pair, err := tls.X509KeyPair([]byte(own.cert), []byte(own.key))
		if err != nil {
			return err.Error()
		}
		// Also when it is of an authority that the server does not name.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", "127.0.0.1:8443", config)
	if err != nil {
		return "no connection: " + err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	name := c.ConnectionState().PeerCertificates[0].Subject.CommonName
	// In TLS 1.3 the client's certificate is judged after the handshake.
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "no answer: " + err.Error()
	}
	return fmt.Sprintf("%s %d", name, answer.StatusCode)
}

func TestAGatewayServesWithSecretsAndFollowsThem(t *testing.T) {
	c := newControlPlane(t)
	first, second, client, stranger := makeCertificate(t, "first"), makeCertificate(t, "second"), makeCertificate(t, "client"), makeCertificate(t, "stranger")
	c.put("edge", edge)
	// mutual has its authorities in a Secret of its own; optional does not exist yet.
	c.put("secrets", secretYAML("shop", "tls.crt", first.cert, "tls.key", first.key)+secretYAML("mutual", "cert", first.cert, "key", first.key)+secretYAML("mutual-cacert", "cacert", client.cert))
	c.start()
	pem, err := os.ReadFile(filepath.Join(c.ca, identity.RootKey))
	if err != nil {
		t.Fatal(err)
	}
	files := identity.RootConfigMap(pem)
	files["istio-token"] = c.issuer.Token(t, "edge", "edge", "edge-1", "uid-edge", time.Hour)
	p := gatewayProxy(t, "127.0.0.1:15012", files)
	p.Live()
	await := func(host string, own *certificate, want string) {
		t.Helper()
		got := ""
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if got = shows(host, own); strings.HasPrefix(got, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %q, want %q", host, got, want)
			}
		}
	}
	await("shop.example.com", nil, "first 200")
	await("mutual.example.com", &client, "first 200")
	await("mutual.example.com", nil, "no answer")
	await("mutual.example.com", &stranger, "no answer")
	await("optional.example.com", nil, "no connection") // and the others on the port work
	c.eventually("the missing Secret is a problem with a remedy", func() bool {
		return strings.Contains(c.get("/debug/problemz"), "Gateway default/shop (") &&
			strings.Contains(c.get("/debug/problemz"), "spec.servers[2].tls.credentialName: Secret edge/optional does not exist in the namespace of the gateway's pods; make it with: kubectl create secret tls optional -n edge")
	})

	// A connection from before the change goes on; new ones get the new certificate.
	old, err := tls.Dial("tcp", "127.0.0.1:8443", &tls.Config{ServerName: "shop.example.com", InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	listeners := p.Stat("listener_manager.listener_modified")
	rest := secretYAML("mutual", "cert", first.cert, "key", first.key) + secretYAML("mutual-cacert", "cacert", client.cert)
	began := time.Now()
	c.put("secrets", secretYAML("shop", "tls.crt", second.cert, "tls.key", second.key)+rest+secretYAML("optional", "tls.crt", second.cert, "tls.key", second.key, "ca.crt", client.cert))
	await("shop.example.com", nil, "second 200")
	t.Logf("the new certificate is in use %s after the Secret changed", time.Since(began).Round(time.Millisecond))
	await("optional.example.com", nil, "second 200")
	await("optional.example.com", &client, "second 200")
	await("optional.example.com", &stranger, "no answer")
	io.WriteString(old, "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
	old.SetDeadline(time.Now().Add(5 * time.Second))
	if answer, err := http.ReadResponse(bufio.NewReader(old), nil); err != nil || answer.StatusCode != 200 {
		t.Errorf("the connection from before the change: %v", err)
	}
	if n := p.Stat("listener_manager.listener_modified"); n != listeners {
		t.Errorf("%d listeners were replaced: their connections are drained", n-listeners)
	}

	// A Secret that cannot be used changes nothing, and says why; one that is deleted neither.
	c.put("secrets", secretYAML("shop", "tls.crt", second.cert, "tls.key", first.key)+rest)
	c.eventually("the bad Secret is a problem", func() bool {
		return strings.Contains(c.get("/debug/problemz"), "Secret edge/shop") && strings.Contains(c.get("/debug/problemz"), "what it had before stays in use")
	})
	await("shop.example.com", nil, "second 200")
	c.eventually("the deleted Secret is a problem", func() bool { return strings.Contains(c.get("/debug/problemz"), "edge/optional does not exist") })
	t.Log("deleted:", shows("optional.example.com", nil))

	// Nobody but the proxy sees a key.
	for _, page := range []string{"/debug/config_dump?proxyID=edge-1.edge", "/debug/problemz", "/debug/adsz", "/debug/syncz", "/debug/rejectz", "/metrics"} {
		if body := c.get(page); strings.Contains(body, "PRIVATE") || strings.Contains(body, base64.StdEncoding.EncodeToString([]byte(second.key))[:60]) {
			t.Errorf("%s shows a private key", page)
		}
	}
	if dump := c.get("/debug/config_dump?proxyID=edge-1.edge"); !strings.Contains(dump, "kubernetes://shop") {
		t.Errorf("the dump does not name the secret:\n%.2000s", dump)
	}

	// After a restart of the control plane nothing is resent, and the good Secret is back in use.
	c.put("secrets", secretYAML("shop", "tls.crt", first.cert, "tls.key", first.key)+rest)
	await("shop.example.com", nil, "first 200")
	c.stop(syscall.SIGTERM)
	if log := c.log.String(); strings.Contains(log, "PRIVATE") || strings.Contains(log, "level=ERROR") {
		t.Errorf("the log:\n%s", log)
	}
	await("shop.example.com", nil, "first 200")
}
