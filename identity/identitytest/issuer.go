// Package identitytest is a small token issuer for tests: it signs service
// account tokens as a Kubernetes API server does. It is no part of the mesh.
package identitytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Issuer signs tokens with one key.
type Issuer struct {
	Name string // claim iss
	key  *ecdsa.PrivateKey
	id   string
}

// NewIssuer makes an issuer with a key of its own, published under keyID.
func NewIssuer(t testing.TB, name, keyID string) *Issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &Issuer{Name: name, key: key, id: keyID}
}

// JWKS is the issuer's public key set.
func (i *Issuer) JWKS(t testing.TB) []byte {
	t.Helper()
	data, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.id, Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// JWKSFile writes the key set into a directory of the test.
func (i *Issuer) JWKSFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(path, i.JWKS(t), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Claims are those of a token bound to a pod, for audience istio-ca.
func (i *Issuer) Claims(namespace, account, pod, uid string, ttl time.Duration) map[string]any {
	now := time.Now()
	return map[string]any{
		"iss": i.Name,
		"sub": "system:serviceaccount:" + namespace + ":" + account,
		"aud": []string{"istio-ca"},
		"iat": now.Unix(), "nbf": now.Unix(),
		"exp": float64(now.Add(ttl).UnixMilli()) / 1000, // tests want fractions of a second; RFC 7519 allows them
		"kubernetes.io": map[string]any{
			"namespace":      namespace,
			"serviceaccount": map[string]any{"name": account, "uid": "sa-uid"},
			"pod":            map[string]any{"name": pod, "uid": uid},
			"node":           map[string]any{"name": "node", "uid": "node-uid"},
		},
	}
}

// Token signs a token for a pod.
func (i *Issuer) Token(t testing.TB, namespace, account, pod, uid string, ttl time.Duration) string {
	t.Helper()
	return i.Sign(t, i.Claims(namespace, account, pod, uid, ttl))
}

// Sign signs any claims.
func (i *Issuer) Sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: i.id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(maps.Clone(claims))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
