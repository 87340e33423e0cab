package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func open(t testing.TB, dir string) *Authority {
	t.Helper()
	a, err := Open(t.Context(), Dir(dir), "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var reviews = ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "reviews"}

func chainOf(t testing.TB, pem []byte) []*x509.Certificate {
	t.Helper()
	chain, err := decodeCerts(pem)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

func TestANewDirectoryGetsAnAuthorityThatStaysTheSame(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := open(t, dir)
	second := open(t, dir)
	if !bytes.Equal(first.Roots(), second.Roots()) {
		t.Error("a restart changed the mesh's root")
	}
	onDisk, err := os.ReadFile(filepath.Join(dir, RootKey))
	if err != nil || !bytes.Equal(onDisk, first.Roots()) {
		t.Errorf("%s is not the root bundle: %v", RootKey, err)
	}
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: mode %v, %v; others must not read the key", keyFile, info.Mode(), err)
	}
}

func TestTwoReplicasThatStartTogetherShareOneAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	var roots [8][]byte
	var wg sync.WaitGroup
	for i := range roots {
		wg.Go(func() {
			if a, err := Open(t.Context(), Dir(dir), "cluster.local"); err != nil {
				t.Error(err)
			} else {
				roots[i] = a.Roots()
			}
		})
	}
	wg.Wait()
	for _, r := range roots {
		if !bytes.Equal(r, roots[0]) {
			t.Fatal("two authorities for one directory")
		}
	}
}

func TestAnSVIDIsWhatPeersAndSPIFFEExpect(t *testing.T) {
	a := open(t, t.TempDir())
	svid, err := a.Issue(reviews, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chainOf(t, svid.Chain)[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/default/sa/reviews" {
		t.Errorf("URI SANs %v", leaf.URIs)
	}
	critical := false
	for _, e := range leaf.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			critical = e.Critical
		}
	}
	if !critical || leaf.Subject.String() != "" {
		t.Errorf("the SAN must be critical and the subject empty: %v %q", critical, leaf.Subject)
	}
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		t.Error("a workload must not sign certificates")
	}
	if early := time.Since(leaf.NotBefore); early < 50*time.Second || early > 2*time.Minute {
		t.Errorf("valid since %s ago, want about a minute", early)
	}
	if life := time.Until(leaf.NotAfter); life < 24*time.Hour-time.Minute || life > 24*time.Hour {
		t.Errorf("valid for %s", life)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: a.RootPool(), KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Error(err)
		}
	}
	if _, err := tls.X509KeyPair(svid.Chain, svid.Key); err != nil {
		t.Error(err)
	}
	other, err := a.Issue(reviews, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(svid.Key, other.Key) {
		t.Error("two pods of one service account share a key")
	}
}

func TestACertificateIsRenewedAroundHalfOfItsLife(t *testing.T) {
	a := open(t, t.TempDir())
	svid, err := a.Issue(reviews, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	v, ok := ParseVersion(svid.Version.String())
	if !ok {
		t.Fatalf("version %q cannot be read back", svid.Version)
	}
	seen := make(map[time.Time]bool)
	for range 100 {
		at := v.RenewAt()
		seen[at] = true
		if age := at.Sub(v.Issued); age > 12*time.Hour || age < 12*time.Hour-24*time.Hour/10-time.Second {
			t.Fatalf("renewal after %s", age)
		}
	}
	if len(seen) < 50 {
		t.Error("all pods would come at the same moment")
	}
	if !a.Current(v, time.Now()) || a.Current(v, time.Now().Add(13*time.Hour)) {
		t.Error("Current must hold for the first half of the life only")
	}
	if other := open(t, t.TempDir()); other.Current(v, time.Now()) {
		t.Error("a certificate of another authority is taken for current")
	}
	for _, s := range []string{"", "a", "a-b", "a-b-", "-a-b-c", "zzzzzzzzzzzzzzzzzz-1-x", "2-1-x", "1-2-x-y"} {
		if _, ok := ParseVersion(s); ok {
			t.Errorf("%q was read as a version", s)
		}
	}
}

// authorityOf makes a root with an intermediate, as `make -f tools/certs/Makefile.selfsigned.mk` does for Istio.
func pluggedIn(t testing.TB, key crypto.Signer) (root, intermediate Material) {
	t.Helper()
	root, err := selfSigned("example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	rootCert := chainOf(t, root.Cert)[0]
	rootKey, err := decodeKey(root.Key)
	if err != nil {
		t.Fatal(err)
	}
	// The root that selfSigned makes allows no intermediates; this one must.
	rootCert.MaxPathLen, rootCert.MaxPathLenZero = 1, false
	rootCert.Subject.CommonName = "Root CA"
	der, err := x509.CreateCertificate(rand.Reader, rootCert, rootCert, rootKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	rootCert, err = x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Intermediate CA"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	interDER, err := x509.CreateCertificate(rand.Reader, template, rootCert, key.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	rootPEM := encodeCert(rootCert.Raw)
	return Material{Cert: rootPEM, Key: root.Key, Roots: rootPEM},
		Material{Cert: encodeCert(interDER), Key: keyPEM, Chain: append(encodeCert(interDER), rootPEM...), Roots: rootPEM}
}

func put(t testing.TB, dir string, m Material) {
	t.Helper()
	for name, data := range map[string][]byte{certFile: m.Cert, keyFile: m.Key, chainFile: m.Chain, RootKey: m.Roots} {
		if data == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPluggedInIntermediateSignsAndItsChainIsSent(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, m := pluggedIn(t, rsaKey)
	dir := t.TempDir()
	put(t, dir, m)
	a := open(t, dir)
	svid, err := a.Issue(reviews, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	chain := chainOf(t, svid.Chain)
	if len(chain) != 2 || chain[1].Subject.CommonName != "Intermediate CA" {
		t.Fatalf("%d certificates are sent, want leaf and intermediate without the root", len(chain))
	}
	between := x509.NewCertPool()
	between.AddCert(chain[1])
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: a.RootPool(), Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if chain[0].NotAfter.After(chain[1].NotAfter) {
		t.Error("the leaf outlives its signer")
	}
}

func TestAReplacedRootIsFollowedWithoutARestart(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	oldRoot := a.Roots()
	old, err := a.Issue(reviews, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx, slog.New(slog.DiscardHandler)) }()
	defer func() { cancel(); <-done }()
	next, err := selfSigned("cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	both := append(bytes.Clone(oldRoot), next.Roots...)

	// First step: everybody learns to trust both. The watch may need a moment to begin.
	changed := a.Changed()
	eventually(t, func() bool {
		put(t, dir, Material{Roots: both})
		select {
		case <-changed:
			return true
		case <-time.After(300 * time.Millisecond):
			return false
		}
	})
	if !bytes.Equal(a.Roots(), both) || !a.Current(old.Version, time.Now()) {
		t.Error("both roots must be trusted, and certificates stay as they are")
	}

	// Second step: the new one signs.
	changed = a.Changed()
	put(t, dir, Material{Cert: next.Cert, Key: next.Key})
	<-changed
	svid, err := a.Issue(reviews, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if a.Current(old.Version, time.Now()) {
		t.Error("certificates of the former signer must be renewed now")
	}
	for _, s := range []*SVID{old, svid} {
		if _, err := chainOf(t, s.Chain)[0].Verify(x509.VerifyOptions{Roots: a.RootPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("during the change both old and new certificates must be good: %v", err)
		}
	}
}

func TestAnUnusableAuthorityIsAnErrorThatSaysWhy(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, inter := pluggedIn(t, key)
	stranger, err := selfSigned("example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	old, err := selfSigned("example", time.Now().Add(-2*rootLifetime))
	if err != nil {
		t.Fatal(err)
	}
	a := open(t, t.TempDir())
	leaf, err := a.Issue(reviews, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, says string
		m          Material
	}{
		{"key of another", "does not belong to", Material{Cert: root.Cert, Key: stranger.Key, Roots: root.Roots}},
		{"no key", "no ca-key.pem", Material{Cert: root.Cert}},
		{"no certificate", "no ca-cert.pem", Material{Key: root.Key}},
		{"text for a key", "no private key", Material{Cert: root.Cert, Key: []byte("secret")}},
		{"broken key", "cannot be parsed", Material{Cert: root.Cert, Key: []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")}},
		{"expired", "expired at", old},
		{"not a CA", "not a CA", Material{Cert: leaf.Chain, Key: leaf.Key, Roots: a.Roots()}},
		{"other root", "does not lead to", Material{Cert: inter.Cert, Key: inter.Key, Roots: stranger.Roots}},
		{"no root", "root-cert.pem is missing", Material{Cert: inter.Cert, Key: inter.Key}},
		{"empty root", "root-cert.pem: no certificate", Material{Cert: root.Cert, Key: root.Key, Roots: []byte("x")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, c.m)
			_, err := Open(t.Context(), Dir(dir), "cluster.local")
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want it to say %q", err, c.says)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the key is in the message: %v", err)
			}
		})
	}
}

func TestARequestIsSignedForTheCallerWhateverItAsksFor(t *testing.T) {
	a := open(t, t.TempDir())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	admin := ID{TrustDomain: "cluster.local", Namespace: "kube-system", ServiceAccount: "admin"}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{admin.url()}, DNSNames: []string{"istiod.istio-system.svc"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.SignRequest(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), reviews, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chainOf(t, chain)[0]
	if len(leaf.DNSNames) != 0 || len(leaf.URIs) != 1 || leaf.URIs[0].String() != reviews.String() {
		t.Errorf("signed for %v %v", leaf.URIs, leaf.DNSNames)
	}
	der[len(der)-1] ^= 1
	if _, err := a.SignRequest(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), reviews, time.Hour); err == nil {
		t.Error("signed a key that the caller does not have")
	}
}

func TestServingCertificatesFollowTheAuthority(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	s := NewServing(a, "istiod.istio-system.svc", "127.0.0.1")
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: s.Certificate})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) { c.(*tls.Conn).Handshake(); c.Close() }(c)
		}
	}()
	dial := func(name string) (*x509.Certificate, error) {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: name, RootCAs: a.RootPool()})
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0], nil
	}
	first, err := dial("istiod.istio-system.svc")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := dial("127.0.0.1"); err != nil || !again.Equal(first) {
		t.Errorf("a second handshake made another certificate, or failed: %v", err)
	}
	if _, err := dial("elsewhere.svc"); err == nil {
		t.Error("accepted for a name that is not in the certificate")
	}
	next, err := selfSigned("cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, next)
	if changed, err := a.reload(t.Context()); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if _, err := dial("istiod.istio-system.svc"); err != nil {
		t.Errorf("the certificate is still of the former authority: %v", err)
	}
}

func TestSPIFFEIDs(t *testing.T) {
	for _, s := range []string{"spiffe://cluster.local/ns/default/sa/reviews", "spiffe://td-1/ns/a.b/sa/c_d"} {
		if id, err := ParseID(s); err != nil || id.String() != s || id.url().String() != s {
			t.Errorf("%s: %v %v", s, id, err)
		}
	}
	for _, s := range []string{"", "http://a/ns/b/sa/c", "spiffe://A/ns/b/sa/c", "spiffe://a/ns/b", "spiffe://a/ns//sa/c", "spiffe://a/ns/../sa/c", "spiffe://a/ns/b/sa/c/d", "spiffe://a/ns/b/sa/c?d"} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("%q was read as %v", s, id)
		}
	}
}

func TestTheRootConfigMapHoldsADocumentForEnvoy(t *testing.T) {
	a := open(t, t.TempDir())
	data := RootConfigMap(append(bytes.Clone(a.Roots()), a.Roots()...))
	doc := data[RootDocumentKey]
	if !strings.Contains(doc, "name: xds-ca\n") || strings.Count(doc, "BEGIN CERTIFICATE") != 2 {
		t.Errorf("document:\n%s", doc)
	}
	if data[RootKey] == "" {
		t.Error("no plain bundle")
	}
}

func BenchmarkIssue(b *testing.B) {
	a := open(b, b.TempDir())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Issue(reviews, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
}
