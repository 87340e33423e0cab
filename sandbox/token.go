package sandbox

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/weft-mesh/weft/sandbox/store"
)

// tokenIssuer is what kube-apiserver's --service-account-issuer is by default in kubeadm clusters.
const tokenIssuer = "https://kubernetes.default.svc.cluster.local"

// minTokenLife is the API server's smallest expirationSeconds.
const minTokenLife = 10 * time.Minute

// tokens signs service-account tokens as the API server's TokenRequest does.
type tokens struct {
	store  *store.Store
	signer jose.Signer
}

// newTokens makes a fresh key and writes its public half to dir/jwks.json, for weftd to verify with.
func newTokens(s *store.Store, dir string) (*tokens, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	id := string(uuid.NewUUID())
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: id}}, nil)
	if err != nil {
		return nil, err
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: id, Algorithm: string(jose.ES256), Use: "sig"}}}
	b, err := json.MarshalIndent(set, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "jwks.json"), b, 0o644); err != nil {
		return nil, err
	}
	return &tokens{store: s, signer: signer}, nil
}

type ref struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
}

// kubernetesClaims are the private claims of a bound token (Kubernetes: pkg/serviceaccount/claims.go).
type kubernetesClaims struct {
	Kubernetes struct {
		Namespace      string `json:"namespace"`
		ServiceAccount ref    `json:"serviceaccount"`
		Pod            *ref   `json:"pod,omitempty"`
		Node           *ref   `json:"node,omitempty"`
	} `json:"kubernetes.io"`
}

// Mint makes a token bound to a pod. It fails when the pod or its service account is gone.
func (t *tokens) Mint(_ context.Context, pod *corev1.Pod, audience string, ttl time.Duration) (string, time.Time, error) {
	sa := store.Get[*corev1.ServiceAccount](t.store, "serviceaccounts", pod.Namespace, pod.Spec.ServiceAccountName)
	if sa == nil {
		return "", time.Time{}, fmt.Errorf("serviceaccounts %q not found in namespace %s", pod.Spec.ServiceAccountName, pod.Namespace)
	}
	if p := store.Get[*corev1.Pod](t.store, "pods", pod.Namespace, pod.Name); p == nil || p.UID != pod.UID {
		return "", time.Time{}, errors.New("the pod is gone")
	}
	if audience == "" {
		audience = tokenIssuer
	}
	ttl = max(ttl, minTokenLife)
	now := time.Now()
	expires := now.Add(ttl)
	var private kubernetesClaims
	private.Kubernetes.Namespace = pod.Namespace
	private.Kubernetes.ServiceAccount = ref{sa.Name, string(sa.UID)}
	private.Kubernetes.Pod = &ref{pod.Name, string(pod.UID)}
	private.Kubernetes.Node = &ref{Name: nodeName}
	if n := store.Get[*corev1.Node](t.store, "nodes", "", nodeName); n != nil {
		private.Kubernetes.Node.UID = string(n.UID)
	}
	token, err := jwt.Signed(t.signer).Claims(jwt.Claims{
		Issuer: tokenIssuer, Subject: "system:serviceaccount:" + pod.Namespace + ":" + sa.Name,
		Audience: jwt.Audience{audience}, ID: string(uuid.NewUUID()),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(expires),
	}).Claims(private).Serialize()
	return token, expires, err
}
