package mesh

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// A Credential is a Secret with which gateways end TLS. It holds private keys: nothing here prints it.
type Credential struct {
	Ref         Ref
	Certificate []byte // PEM, the chain; nil when there is none
	Key         []byte // PEM
	Staple      []byte // OCSP response in DER, if any
	Authorities []byte // PEM: those of clients' certificates; nil when there are none
	Revoked     []byte // PEM: revocation lists of Authorities, if any

	// Fault is why the Secret cannot be used as it is now, with the remedy. What it said when it was last good, if ever, stays in force.
	Fault string
}

// authoritiesSuffix ends the name of a Secret that has the authorities for another one (Istio: "NAME-cacert").
const authoritiesSuffix = "-cacert"

// CredentialKeys are the keys of a Secret that matter here, the first of each group that is there being used
// (Istio: ServerTLSSettings.credentialName).
var CredentialKeys = []string{"tls.crt", "tls.key", "tls.ocsp-staple", "ca.crt", "ca.crl", "cert", "key", "cacert", "crl"}

// credentialOf reads a Secret. Errors of the standard library say what is wrong with PEM and never quote it.
func credentialOf(in *corev1.Secret, ref Ref) *Credential {
	c := &Credential{Ref: ref}
	cert, key := "tls.crt", "tls.key"
	if len(in.Data["cert"]) > 0 || len(in.Data["key"]) > 0 {
		cert, key = "cert", "key"
	}
	if err := c.pair(in.Data, cert, key); err != nil {
		return &Credential{Ref: ref, Fault: err.Error()}
	}
	for _, name := range []string{"cacert", "ca.crt"} {
		if len(in.Data[name]) == 0 {
			continue
		}
		if err := checkAuthorities(in.Data[name]); err != nil {
			return &Credential{Ref: ref, Fault: name + ": " + err.Error()}
		}
		c.Authorities = in.Data[name]
		break
	}
	c.Staple = in.Data["tls.ocsp-staple"]
	for _, name := range []string{"crl", "ca.crl"} {
		if len(in.Data[name]) > 0 && c.Revoked == nil {
			c.Revoked = in.Data[name]
		}
	}
	if c.Certificate == nil && c.Authorities == nil {
		c.Fault = "it has neither a certificate (tls.crt and tls.key, or cert and key) nor authorities (ca.crt or cacert)"
	}
	return c
}

// pair takes certificate and key, or neither.
func (c *Credential) pair(data map[string][]byte, cert, key string) error {
	switch {
	case len(data[cert]) == 0 && len(data[key]) == 0:
		return nil
	case len(data[cert]) == 0:
		return fmt.Errorf("it has %s and no %s", key, cert)
	case len(data[key]) == 0:
		return fmt.Errorf("it has %s and no %s", cert, key)
	}
	if _, err := tls.X509KeyPair(data[cert], data[key]); err != nil {
		return fmt.Errorf("%s and %s: %s", cert, key, strings.TrimPrefix(err.Error(), "tls: "))
	}
	c.Certificate, c.Key = data[cert], data[key]
	return nil
}

func checkAuthorities(text []byte) error {
	n := 0
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
		n++
	}
	if n == 0 {
		return errors.New("no certificate in PEM form is in it")
	}
	return nil
}

func (c *Credential) equal(o *Credential) bool {
	return c.Ref == o.Ref && c.Fault == o.Fault && bytes.Equal(c.Certificate, o.Certificate) && bytes.Equal(c.Key, o.Key) &&
		bytes.Equal(c.Staple, o.Staple) && bytes.Equal(c.Authorities, o.Authorities) && bytes.Equal(c.Revoked, o.Revoked)
}

// setCredential takes in a Secret; nil removes it.
func (s *Store) setCredential(key Key, c *Credential) {
	name := key.Namespace + "/" + key.Name
	old := latest(s.pending.credentials, s.current.credentials, name)
	if c != nil && c.Fault != "" && old != nil {
		good := *old
		good.Ref, good.Fault = c.Ref, c.Fault
		c = &good
	}
	setConfig(s, key, s.pending.credentials, s.current.credentials, name, c)
}

// Unreadable notes why a Secret cannot be read, with the remedy, until it is applied or deleted. What it said before stays in force. It shows
// wherever a Gateway wants it.
func (s *Store) Unreadable(key Key, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setCredential(key, &Credential{Ref: Ref{Kind: key.Kind, Namespace: key.Namespace, Name: key.Name}, Fault: why})
	s.wake()
}

// Credential returns a Secret by namespace and name, or nil. Of those in the API server only the ones are here that [Store.Credentials] lists.
func (s *Snapshot) Credential(namespace, name string) *Credential {
	return s.credentials.get(namespace + "/" + name)
}

// AuthoritiesFor returns the Secret with the authorities of clients that belongs to credential name: "NAME-cacert", or else the same Secret. It may be
// nil, or have none.
func (s *Snapshot) AuthoritiesFor(namespace, name string) *Credential {
	if c := s.Credential(namespace, name+authoritiesSuffix); c != nil {
		return c
	}
	return s.Credential(namespace, name)
}

// IsGateway reports whether a pod with these annotations is a gateway's: what the injector wrote decides, or before that what it is asked for.
func IsGateway(annotations map[string]string) bool {
	var injected struct {
		Templates []string `json:"templates"`
	}
	if err := json.Unmarshal([]byte(annotations[statusAnnotation]), &injected); err == nil && injected.Templates != nil {
		return slices.Contains(injected.Templates, "gateway")
	}
	for name := range strings.SplitSeq(annotations["inject.istio.io/templates"], ",") {
		if strings.TrimSpace(name) == "gateway" {
			return true
		}
	}
	return false
}

// CredentialNameFault says why a text cannot be the name of a Secret; empty when it can.
func CredentialNameFault(name string) string {
	switch problems := validation.IsDNS1123Subdomain(name); {
	case name == "":
		return "it is empty"
	case strings.Contains(name, "/"):
		return "Secrets are taken from the namespace of the gateway's pods only: write the name without a namespace or scheme"
	case len(problems) > 0:
		return "it is not the name of a Secret: " + problems[0]
	}
	return ""
}
