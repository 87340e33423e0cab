package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Authority signs what this control plane vouches for: workloads' SVIDs and its
// own serving certificates. It follows its Store, so that a replaced CA takes
// effect without a restart. Safe for concurrent use.
type Authority struct {
	trustDomain string
	store       Store
	current     atomic.Pointer[signer]

	mu      sync.Mutex
	changed chan struct{}
}

// Open loads the authority from store, and makes a self-signed one there when
// the store is empty.
func Open(ctx context.Context, store Store, trustDomain string) (*Authority, error) {
	if err := ValidateTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	a := &Authority{trustDomain: trustDomain, store: store, changed: make(chan struct{})}
	m, err := store.Load(ctx)
	if errors.Is(err, ErrNoMaterial) {
		m, err = a.create(ctx)
	}
	if err != nil {
		return nil, err
	}
	s, err := m.parse(time.Now())
	if err != nil {
		return nil, err
	}
	a.current.Store(s)
	return a, nil
}

func (a *Authority) create(ctx context.Context) (Material, error) {
	m, err := selfSigned(a.trustDomain, time.Now())
	if err != nil {
		return Material{}, err
	}
	err = a.store.Create(ctx, m)
	if errors.Is(err, ErrExists) {
		return a.store.Load(ctx)
	}
	return m, err
}

// Run follows the store until ctx ends. Material that cannot be used is logged
// and the former one stays in use: a half-copied directory must not stop the mesh.
func (a *Authority) Run(ctx context.Context, log *slog.Logger) error {
	events, err := a.store.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch the certificate authority's store: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events:
		}
		switch changed, err := a.reload(ctx); {
		case err != nil:
			log.Warn("the stored certificate authority cannot be used; the former one stays in use", "error", err)
		case changed:
			s := a.current.Load()
			log.Info("certificate authority replaced", "signer", s.cert.Subject.String(), "expires", s.cert.NotAfter, "roots", len(s.trust))
		}
	}
}

func (a *Authority) reload(ctx context.Context) (changed bool, err error) {
	m, err := a.store.Load(ctx)
	if err != nil {
		return false, err
	}
	s, err := m.parse(time.Now())
	if err != nil {
		return false, err
	}
	old := a.current.Load()
	if old.cert.Equal(s.cert) && string(old.roots) == string(s.roots) && string(old.chain) == string(s.chain) {
		return false, nil
	}
	a.current.Store(s)
	a.mu.Lock()
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	return true, nil
}

// Changed returns a channel that is closed when the signer or the roots next
// change. Take it before reading Roots or issuing, and no change is missed.
func (a *Authority) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// TrustDomain is the authority part of all IDs that this Authority signs for.
func (a *Authority) TrustDomain() string { return a.trustDomain }

// Roots is the PEM bundle that peers must trust. Do not modify it.
func (a *Authority) Roots() []byte { return a.current.Load().roots }

// RootPool is Roots for a TLS client or verifier.
func (a *Authority) RootPool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range a.current.Load().trust {
		pool.AddCert(c)
	}
	return pool
}

// RootExpiry is when the first of the trusted roots ends.
func (a *Authority) RootExpiry() time.Time {
	var first time.Time
	for _, c := range a.current.Load().trust {
		if first.IsZero() || c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	return first
}

// SignerExpiry is when the signing certificate ends.
func (a *Authority) SignerExpiry() time.Time { return a.current.Load().cert.NotAfter }
