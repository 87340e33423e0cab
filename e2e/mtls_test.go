package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
)

// serverCert is the certificate chain a pod of the app shows to a client that offers mesh TLS.
func serverCert(t *testing.T, ns, from *Namespace, app string, port int) []*x509.Certificate {
	t.Helper()
	ip := ns.pods("app=" + app)[0].Status.PodIP
	r := from.Call(fromClient, "-alpn", "istio", fmt.Sprintf("tls://%s:%d", ip, port))[0]
	var chain []*x509.Certificate
	for rest := []byte(r.Body); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		t.Fatalf("no certificate: %+v", r)
	}
	return chain
}

func TestS43MeshTLSCarriesTheIdentity(t *testing.T) {
	ns, plain := meshed(t), outside(t)
	ns.Deploy(App{Name: "catalog"}, client)

	chain := serverCert(t, ns, plain, "catalog", 8080)
	want := "spiffe://cluster.local/ns/" + ns.Name + "/sa/catalog"
	if len(chain[0].URIs) != 1 || chain[0].URIs[0].String() != want {
		t.Errorf("SAN %v, want %s", chain[0].URIs, want)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ns.Kubectl("get", "configmap", "istio-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`))) {
		t.Fatal("no root in ConfigMap istio-ca-root-cert")
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates}); err != nil {
		t.Errorf("the certificate does not verify: %v", err)
	}

	// The callee's sidecar names the verified caller.
	r := ns.Call(fromClient, "http://catalog/")[0]
	if err := hasCaller(r, "spiffe://cluster.local/ns/"+ns.Name+"/sa/client"); err != nil {
		t.Error(err)
	}
	if xfcc := strings.Join(r.Seen().Headers["X-Forwarded-Client-Cert"], ","); !strings.Contains(xfcc, "By="+want) {
		t.Errorf("x-forwarded-client-cert %q does not name the callee", xfcc)
	}
}

// hasCaller is an error unless the callee's sidecar has verified that identity.
func hasCaller(r Result, identity string) error {
	if xfcc := strings.Join(r.Seen().Headers["X-Forwarded-Client-Cert"], ","); !strings.Contains(xfcc, "URI="+identity) {
		return fmt.Errorf("status %d, x-forwarded-client-cert %q does not name %s: %s", r.Status, xfcc, identity, r.Error)
	}
	return nil
}

// refused waits until a plaintext request is cut without an HTTP answer, as curl's exit code 56 says.
func (ns *Namespace) refused(url string) {
	ns.T.Helper()
	Eventually(ns.T, "plaintext to "+url+" is refused", func() error {
		if r := ns.Call(fromClient, "-no-keepalive", url)[0]; r.Status != 0 || !(strings.Contains(r.Error, "reset") || strings.Contains(r.Error, "EOF")) {
			return fmt.Errorf("status %d, error %q", r.Status, r.Error)
		}
		return nil
	})
}

// answered waits until a request gets a 200.
func (ns *Namespace) answered(url string) {
	ns.T.Helper()
	Eventually(ns.T, url+" answers", func() error {
		if r := ns.Call(fromClient, "-no-keepalive", url)[0]; r.Status != 200 {
			return fmt.Errorf("status %d, error %q", r.Status, r.Error)
		}
		return nil
	})
}

const meshStrict = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
`

func TestS44PermissiveTakesPlaintext(t *testing.T) {
	ns, plain := versions(t), outside(t)
	plain.answered("http://" + ns.host("echo") + "/")
	ns.answered("http://echo/")
}

func TestS45MeshStrictRefusesPlaintext(t *testing.T) {
	ns, plain := alone(t), outside(t)
	ns.Deploy(App{Name: "echo"}, client)
	plain.answered("http://" + ns.host("echo") + "/")
	ns.ApplyWhile(meshStrict)
	plain.refused("http://" + ns.host("echo") + "/")
	ns.answered("http://echo/")
	// The app's probes keep passing although kubelet has no certificate.
	if got := ns.readyColumn("echo"); got != "2/2" {
		t.Errorf("READY is %s under STRICT, want 2/2", got)
	}
}

func TestS46NarrowestPeerAuthenticationWins(t *testing.T) {
	ns, plain := alone(t), outside(t)
	ns.Deploy(App{Name: "open"}, App{Name: "closed"}, client)
	ns.ApplyWhile(meshStrict)
	ns.Apply(`apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: open}
spec:
  selector: {matchLabels: {app: open}}
  mtls: {mode: PERMISSIVE}
`)
	plain.refused("http://" + ns.host("closed") + "/")
	plain.answered("http://" + ns.host("open") + "/")

	// A namespace's policy wins over the mesh's, and a workload's over both.
	ns.Apply(`apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: open}
spec:
  selector: {matchLabels: {app: open}}
  mtls: {mode: STRICT}
`)
	plain.answered("http://" + ns.host("closed") + "/")
	plain.refused("http://" + ns.host("open") + "/")
	ns.answered("http://open/")
	ns.answered("http://closed/")
}
