package node

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// authority issues the cluster's certificates.
type authority struct {
	layout
	cert *x509.Certificate
	key  crypto.Signer
}

// certificates makes the credentials of the control plane below pki/, unless they are there from an earlier life of the cluster.
func (c *cluster) certificates() error {
	l := c.layout
	if _, err := os.Stat(l.pki("complete")); err == nil {
		return nil
	}
	if err := os.MkdirAll(l.path("pki"), 0o700); err != nil {
		return err
	}
	ca := &authority{layout: l, cert: &x509.Certificate{
		Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}}
	if err := ca.issue("ca", ca.cert); err != nil {
		return err
	}
	nodeIPs := []net.IP{net.ParseIP(NodeIP), net.ParseIP("127.0.0.1")}
	if c.DualStack {
		nodeIPs = append(nodeIPs, net.ParseIP(nodeIP6))
	}
	for name, template := range map[string]*x509.Certificate{
		"apiserver": {
			Subject: pkix.Name{CommonName: "kube-apiserver"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			DNSNames:    []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
			IPAddresses: append([]net.IP{net.ParseIP(apiIP)}, nodeIPs...),
		},
		"kubelet": {
			Subject:     pkix.Name{CommonName: "system:node:" + NodeName, Organization: []string{"system:nodes"}},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{NodeName}, IPAddresses: nodeIPs,
		},
		"apiserver-kubelet-client": { // what logs, exec and port-forward go through
			Subject:     pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		},
		"service-accounts": {Subject: pkix.Name{CommonName: "service accounts"}}, // only its key is used
	} {
		if err := ca.issue(name, template); err != nil {
			return err
		}
	}
	return os.WriteFile(l.pki("complete"), nil, 0o600)
}

// issue writes pki/NAME.crt and pki/NAME.key. Keys are in SEC1: the API server refuses PKCS#8 for the keys of service account tokens.
func (a *authority) issue(name string, template *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(10*365*24*time.Hour)
	if template.IsCA {
		a.key = key
	} else {
		template.KeyUsage = x509.KeyUsageDigitalSignature
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", name, err)
	}
	if template.IsCA {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			return err
		}
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(a.pki(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(a.pki(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// user is a component with a token of its own.
type user struct{ file, name, group string }

var users = []user{
	{"admin", "admin", "system:masters"},
	{"kubelet", "system:node:" + NodeName, "system:nodes"},
	{"kube-controller-manager", "system:kube-controller-manager", ""},
	{"kube-scheduler", "system:kube-scheduler", ""},
	{"kube-proxy", "system:kube-proxy", ""},
	{"flannel", "weft:flannel", ""},
	{"multus", "weft:multus", ""},
}

// kubeconfigs writes the file of the users' tokens, and a kubeconfig for each user: DIR/kubeconfig for the administrator,
// pki/NAME.kubeconfig for the others.
func (c *cluster) kubeconfigs() error {
	c.tokens = map[string]string{}
	tokens := ""
	for _, u := range users {
		path := c.pki(u.file + ".kubeconfig")
		if u.file == "admin" {
			path = c.path("kubeconfig")
		}
		token := rand.Text()
		c.tokens[u.file] = token
		tokens += fmt.Sprintf("%s,%s,%s,%q\n", token, u.name, u.file, u.group)
		// The certificate is inside, so that the file can be handed on.
		ca, err := os.ReadFile(c.pki("ca.crt"))
		if err != nil {
			return err
		}
		config := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: weft
clusters: [{name: weft, cluster: {server: "https://%s:6443", certificate-authority-data: %q}}]
users: [{name: %s, user: {token: %s}}]
contexts: [{name: weft, context: {cluster: weft, user: %[3]s}}]
`, NodeIP, base64Of(ca), u.file, token)
		if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(c.pki("tokens.csv"), []byte(tokens), 0o600)
}
