package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync"
	"time"
)

// servingTTL is short because renewal costs nothing: it happens inside a handshake.
const servingTTL = 24 * time.Hour

// Serving is the certificate that the control plane's own servers show. It renews
// itself at half its life and whenever the authority was replaced.
type Serving struct {
	authority *Authority
	names     []string
	addresses []net.IP

	mu      sync.Mutex
	cert    *tls.Certificate
	version Version
}

// NewServing prepares a certificate for DNS names and IP addresses (as text);
// it is made at the first handshake.
func NewServing(a *Authority, names ...string) *Serving {
	s := &Serving{authority: a}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			s.addresses = append(s.addresses, ip)
		} else {
			s.names = append(s.names, n)
		}
	}
	return s
}

// Certificate has the form of tls.Config.GetCertificate.
func (s *Serving) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cert != nil && s.authority.Current(s.version, time.Now()) {
		return s.cert, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		DNSNames:    s.names,
		IPAddresses: s.addresses,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	chain, version, err := s.authority.current.Load().leaf(template, key.Public(), servingTTL)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(chain, keyPEM)
	if err != nil {
		return nil, err
	}
	s.cert, s.version = &pair, version
	return s.cert, nil
}
