package identity

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// ID is the identity of a workload: its service account, inside a trust domain.
type ID struct {
	TrustDomain    string // "cluster.local"
	Namespace      string
	ServiceAccount string
}

// String gives "spiffe://cluster.local/ns/default/sa/reviews" (Istio's form of a SPIFFE ID).
func (id ID) String() string {
	return "spiffe://" + id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// Validate reports the first part of the ID that a SPIFFE ID cannot carry
// (SPIFFE-ID section 2: a lower-case trust domain, path segments of letters,
// digits, dots, dashes and underscores).
func (id ID) Validate() error {
	if err := ValidateTrustDomain(id.TrustDomain); err != nil {
		return err
	}
	if !segment(id.Namespace) {
		return fmt.Errorf("namespace %q cannot be part of a SPIFFE ID", id.Namespace)
	}
	if !segment(id.ServiceAccount) {
		return fmt.Errorf("service account %q cannot be part of a SPIFFE ID", id.ServiceAccount)
	}
	return nil
}

// ValidateTrustDomain accepts what SPIFFE-ID section 2.1 does: 1 to 255 lower-case
// letters, digits, dots, dashes and underscores.
func ValidateTrustDomain(name string) error {
	if name == "" || len(name) > 255 || strings.ToLower(name) != name || !characters(name) {
		return fmt.Errorf("trust domain %q: want 1 to 255 lower-case letters, digits, '.', '-' or '_'", name)
	}
	return nil
}

// ParseID reads what String writes, and nothing else.
func ParseID(s string) (ID, error) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return ID{}, fmt.Errorf("%q is not a SPIFFE ID: it does not begin with spiffe://", s)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ID{}, fmt.Errorf("%q is not the ID of a workload: want spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT", s)
	}
	id := ID{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}
	if err := id.Validate(); err != nil {
		return ID{}, fmt.Errorf("%q: %w", s, err)
	}
	return id, nil
}

// url is the ID as a URI SAN.
func (id ID) url() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount}
}

func segment(s string) bool { return s != "" && s != "." && s != ".." && characters(s) }

func characters(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

var errNoCertificate = errors.New("no certificate in it (want PEM blocks of type CERTIFICATE)")
