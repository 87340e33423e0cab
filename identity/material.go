package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Material is a certificate authority as PEM, under the keys of Istio's Secret
// `cacerts` (Istio: "Plug in CA Certificates").
type Material struct {
	Cert  []byte // ca-cert.pem: the certificate that signs, root or intermediate
	Key   []byte // ca-key.pem
	Chain []byte // cert-chain.pem: Cert and what stands between it and the root; empty when Cert is a root
	Roots []byte // root-cert.pem: what peers trust. Holds the old and the new root while a root is replaced
}

// Store keeps an authority's Material: a directory, or a Secret.
type Store interface {
	// Load returns ErrNoMaterial when the store is empty, and an error that
	// names the missing part when it is half full.
	Load(ctx context.Context) (Material, error)
	// Create stores m in an empty store. It returns ErrExists when another
	// replica was faster; the caller loads again.
	Create(ctx context.Context, m Material) error
	// Watch sends a value after each possible change, until ctx ends.
	Watch(ctx context.Context) (<-chan struct{}, error)
}

var (
	// ErrNoMaterial: the store holds no authority yet.
	ErrNoMaterial = errors.New("no certificate authority is stored")
	// ErrExists: the store already holds an authority.
	ErrExists = errors.New("a certificate authority is already stored")
)

// rootLifetime is Istio's default for a self-signed root.
const rootLifetime = 10 * 365 * 24 * time.Hour

// backdate makes certificates valid a little before they were made: clocks of nodes differ.
const backdate = time.Minute

// selfSigned makes a new root that signs workloads' certificates itself.
func selfSigned(trustDomain string, now time.Time) (Material, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Material{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Organization: []string{trustDomain}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return Material{}, err
	}
	cert := encodeCert(der)
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Material{}, err
	}
	return Material{Cert: cert, Key: keyPEM, Roots: cert}, nil
}

// signer is Material, parsed and checked.
type signer struct {
	cert  *x509.Certificate
	key   crypto.Signer
	chain []byte // PEM that follows a leaf: cert and other intermediates, no roots
	roots []byte // PEM, normalised: certificates only
	trust []*x509.Certificate
	mark  string // short hash of cert: tells certificates of different signers apart
}

// parse checks that m can sign certificates that peers who trust m.Roots accept.
func (m Material) parse(now time.Time) (*signer, error) {
	certs, err := decodeCerts(m.Cert)
	if err != nil {
		return nil, fmt.Errorf("ca-cert.pem: %w", err)
	}
	s := &signer{cert: certs[0]}
	if !s.cert.IsCA {
		return nil, errors.New("ca-cert.pem: the certificate is not a CA (basicConstraints CA:TRUE is missing); it cannot sign workload certificates")
	}
	if s.cert.KeyUsage != 0 && s.cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, errors.New("ca-cert.pem: keyUsage lacks keyCertSign; it cannot sign workload certificates")
	}
	if now.After(s.cert.NotAfter) {
		return nil, fmt.Errorf("ca-cert.pem: expired at %s; put a valid one there", s.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if s.key, err = decodeKey(m.Key); err != nil {
		return nil, fmt.Errorf("ca-key.pem: %w", err)
	}
	if !samePublicKey(s.key.Public(), s.cert.PublicKey) {
		return nil, errors.New("ca-key.pem does not belong to ca-cert.pem: the public keys differ")
	}
	roots := m.Roots
	if len(bytes.TrimSpace(roots)) == 0 {
		if !isRoot(s.cert) {
			return nil, errors.New("root-cert.pem is missing, and ca-cert.pem is not self-signed: add the root that signed it")
		}
		roots = m.Cert
	}
	if s.trust, err = decodeCerts(roots); err != nil {
		return nil, fmt.Errorf("root-cert.pem: %w", err)
	}
	for _, c := range s.trust {
		s.roots = append(s.roots, encodeCert(c.Raw)...)
	}
	if err := s.link(m.Chain, certs[1:], now); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(s.cert.Raw)
	s.mark = hex.EncodeToString(sum[:4])
	return s, nil
}

// link fills s.chain and proves that it leads to a trusted root.
func (s *signer) link(chainPEM []byte, more []*x509.Certificate, now time.Time) error {
	if len(bytes.TrimSpace(chainPEM)) > 0 {
		chain, err := decodeCerts(chainPEM)
		if err != nil {
			return fmt.Errorf("cert-chain.pem: %w", err)
		}
		more = append(more, chain...)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range s.trust {
		roots.AddCert(c)
	}
	if !isRoot(s.cert) {
		s.chain = append(s.chain, encodeCert(s.cert.Raw)...)
	}
	for _, c := range more {
		// Roots in cert-chain.pem (Istio's own sample has them) are not sent: peers have them.
		if isRoot(c) || c.Equal(s.cert) {
			continue
		}
		between.AddCert(c)
		s.chain = append(s.chain, encodeCert(c.Raw)...)
	}
	_, err := s.cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("ca-cert.pem does not lead to a certificate in root-cert.pem: %w", err)
	}
	return nil
}

func isRoot(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	eq, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && eq.Equal(b)
}

func serial() *big.Int {
	// RFC 5280 section 4.1.2.2: positive, at most 20 octets.
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand since Go 1.24)
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func decodeCerts(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errNoCertificate
	}
	return certs, nil
}

// decodeKey reads PKCS#8, PKCS#1 and SEC1 keys. Its errors never quote the input.
func decodeKey(data []byte) (crypto.Signer, error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("no private key in it (want a PEM block PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY)")
		}
		data = rest
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted; store it without a passphrase")
		default:
			continue // "EC PARAMETERS" stands before the key in files made by openssl
		}
		if err != nil {
			return nil, fmt.Errorf("the %s block cannot be parsed", block.Type)
		}
		s, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of type %T cannot sign", key)
		}
		return s, nil
	}
}
