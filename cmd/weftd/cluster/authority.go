package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/identity"
)

const (
	// givenSecret is an authority of the user's own (Istio: "Plug in CA Certificates").
	givenSecret = "cacerts"
	// madeSecret holds the self-signed authority (Istio's name and keys).
	madeSecret = "istio-ca-secret"
	// madeType is the type that Istio gives that Secret.
	madeType corev1.SecretType = "istio.io/ca-root"

	certKey  = "ca-cert.pem"
	keyKey   = "ca-key.pem"
	chainKey = "cert-chain.pem"
)

// secrets keeps an authority in the Secrets of a namespace. It is an identity.Store.
type secrets struct {
	cluster   *Cluster
	namespace string
	log       *slog.Logger

	mu   sync.Mutex
	seen map[string]*corev1.Secret // by name, once Watch has listed them; nil for one that is not there
}

// Authority is the store of a certificate authority in the Secrets of a namespace: `cacerts`
// when it exists, otherwise `istio-ca-secret`, which is made when it does not exist either.
// Of several replicas that start together one makes it, and all use it.
func (c *Cluster) Authority(namespace string, log *slog.Logger) identity.Store {
	return &secrets{cluster: c, namespace: namespace, log: log, seen: map[string]*corev1.Secret{}}
}

// Load implements identity.Store. The first time it waits for the API server.
func (s *secrets) Load(ctx context.Context) (identity.Material, error) {
	for _, name := range []string{givenSecret, madeSecret} {
		secret, err := s.get(ctx, name)
		if err != nil {
			return identity.Material{}, err
		}
		if secret == nil {
			continue
		}
		m := identity.Material{Cert: secret.Data[certKey], Key: secret.Data[keyKey], Chain: secret.Data[chainKey], Roots: secret.Data[identity.RootKey]}
		for key, value := range map[string][]byte{certKey: m.Cert, keyKey: m.Key} {
			if len(value) == 0 {
				return identity.Material{}, fmt.Errorf("in Secret %s/%s %s is missing: add it, or delete the Secret", s.namespace, name, key)
			}
		}
		return m, nil
	}
	return identity.Material{}, identity.ErrNoMaterial
}

// get returns nil for a Secret that does not exist.
func (s *secrets) get(ctx context.Context, name string) (*corev1.Secret, error) {
	s.mu.Lock()
	secret, known := s.seen[name]
	s.mu.Unlock()
	if known {
		return secret, nil
	}
	err := retry(ctx, s.log, "read Secret "+s.namespace+"/"+name, func() (err error) {
		secret, err = s.cluster.core.Secrets(s.namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			secret, err = nil, nil
		}
		return err
	})
	return secret, err
}

// Create implements identity.Store.
func (s *secrets) Create(ctx context.Context, m identity.Material) error {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: madeSecret, Namespace: s.namespace},
		Type:       madeType,
		Data:       map[string][]byte{certKey: m.Cert, keyKey: m.Key, chainKey: m.Chain, identity.RootKey: m.Roots},
	}
	exists := false
	err := retry(ctx, s.log, "create Secret "+s.namespace+"/"+madeSecret, func() error {
		_, err := s.cluster.core.Secrets(s.namespace).Create(ctx, secret, metav1.CreateOptions{})
		if exists = apierrors.IsAlreadyExists(err); exists {
			return nil
		}
		return err
	})
	if exists {
		return identity.ErrExists
	}
	return err
}

// Watch implements identity.Store.
func (s *secrets) Watch(ctx context.Context) (<-chan struct{}, error) {
	events := make(chan struct{}, 1)
	for _, name := range []string{givenSecret, madeSecret} {
		go followOne(ctx, &corev1.Secret{}, s.cluster.core.Secrets(s.namespace), name, func(secret *corev1.Secret) {
			s.mu.Lock()
			s.seen[name] = secret
			s.mu.Unlock()
			select {
			case events <- struct{}{}:
			default: // a look is already due
			}
		})
	}
	return events, nil
}
