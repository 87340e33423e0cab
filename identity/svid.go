package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// SVID is a workload's X.509 certificate with its private key. It has no
// String method and is never logged.
type SVID struct {
	Chain   []byte // PEM: leaf, then intermediates
	Key     []byte // PEM, PKCS#8
	Version Version
}

// Version says all about an SVID that matters for its renewal, and nothing that
// is secret. A proxy that reconnects repeats it, so that a control plane that was
// restarted knows what the proxy has without having kept anything.
type Version struct {
	Issued  time.Time
	Expires time.Time
	mark    string // of the signer
}

// String gives a form that ParseVersion reads, to the second.
func (v Version) String() string {
	return strconv.FormatInt(v.Issued.Unix(), 36) + "-" + strconv.FormatInt(v.Expires.Unix(), 36) + "-" + v.mark
}

// ParseVersion reads what String writes.
func ParseVersion(s string) (Version, bool) {
	parts := strings.Split(s, "-")
	if len(parts) != 3 || parts[2] == "" {
		return Version{}, false
	}
	issued, err1 := strconv.ParseInt(parts[0], 36, 64)
	expires, err2 := strconv.ParseInt(parts[1], 36, 64)
	if err1 != nil || err2 != nil || issued <= 0 || expires <= issued {
		return Version{}, false
	}
	return Version{time.Unix(issued, 0), time.Unix(expires, 0), parts[2]}, true
}

// RenewAt is the moment to replace the SVID: half its life, up to a tenth of
// it earlier, by chance, so that pods that started together do not come together.
func (v Version) RenewAt() time.Time {
	life := v.Expires.Sub(v.Issued)
	return v.Issued.Add(life/2 - time.Duration(mathrand.Int64N(int64(life/10)+1)))
}

// Current reports whether an SVID of this version can stay: it was signed by
// the present signer, and half its life is still to come.
func (a *Authority) Current(v Version, now time.Time) bool {
	return v.mark == a.current.Load().mark && !v.Issued.After(now.Add(backdate)) && now.Before(v.Issued.Add(v.Expires.Sub(v.Issued)/2))
}

// Issue makes a key pair and signs an SVID for id that lives for ttl, or as long
// as the authority when that is shorter.
//
// Each pod gets a key of its own, not one per service account: a key that leaks
// from one pod then identifies no other pod's connections, and making one costs
// less than 0.1 ms.
func (a *Authority) Issue(id ID, ttl time.Duration) (*SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	chain, version, err := a.sign(id, key.Public(), ttl)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &SVID{Chain: chain, Key: keyPEM, Version: version}, nil
}

// SignRequest signs the public key of a PEM certificate request for id. Names
// that the request asks for are ignored: identity comes from id only.
func (a *Authority) SignRequest(request []byte, id ID, ttl time.Duration) (chain []byte, err error) {
	block, _ := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("the request holds no PEM block of type CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	chain, _, err = a.sign(id, csr.PublicKey, ttl)
	return chain, err
}

func (a *Authority) sign(id ID, public crypto.PublicKey, ttl time.Duration) ([]byte, Version, error) {
	if err := id.Validate(); err != nil {
		return nil, Version{}, err
	}
	// No subject: the SAN extension is then critical, as X509-SVID asks (RFC 5280
	// section 4.2.1.6), and nobody can be led to compare common names.
	template := &x509.Certificate{
		URIs:        []*url.URL{id.url()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	return a.current.Load().leaf(template, public, ttl)
}

// leaf completes and signs template.
func (s *signer) leaf(template *x509.Certificate, public crypto.PublicKey, ttl time.Duration) ([]byte, Version, error) {
	now := time.Now()
	template.SerialNumber = serial()
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = now.Add(ttl)
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	template.BasicConstraintsValid = true
	if template.NotAfter.After(s.cert.NotAfter) {
		template.NotAfter = s.cert.NotAfter
	}
	if !template.NotAfter.After(now) {
		return nil, Version{}, fmt.Errorf("the certificate authority expired at %s", s.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.cert, public, s.key)
	if err != nil {
		return nil, Version{}, err
	}
	chain := append(encodeCert(der), s.chain...)
	return chain, Version{Issued: now, Expires: template.NotAfter, mark: s.mark}, nil
}
