package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"os"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// issuer signs service account tokens as an API server does.
type issuer struct{ signer jose.Signer }

const issuerName = "https://kubernetes.default.svc"

// newIssuer writes its public keys to a file.
func newIssuer(jwks string) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(jwks, data, 0o600); err != nil {
		return nil, err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, nil)
	return &issuer{signer}, err
}

func (i *issuer) token(namespace, account, pod, uid string) (string, error) {
	now := time.Now()
	payload, err := json.Marshal(map[string]any{
		"iss": issuerName, "sub": "system:serviceaccount:" + namespace + ":" + account, "aud": []string{"istio-ca"},
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{
			"namespace": namespace, "serviceaccount": map[string]any{"name": account, "uid": "sa"},
			"pod": map[string]any{"name": pod, "uid": uid},
		},
	})
	if err != nil {
		return "", err
	}
	signed, err := i.signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}
