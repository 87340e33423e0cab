package install

import (
	"context"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// learnedLabel is on what control planes remember of their workloads (docs/on-demand.md).
const learnedLabel = "weft.dev/learned"

// forget removes what only control planes of ours write for themselves.
func (c *Cluster) forget(ctx context.Context, namespace string) error {
	maps := c.CoreV1().ConfigMaps(namespace)
	learned, err := maps.List(ctx, metav1.ListOptions{LabelSelector: learnedLabel + "=true"})
	if err != nil {
		return fmt.Errorf("list ConfigMaps of what was learned: %w", err)
	}
	for _, m := range learned.Items {
		if err := ignoreMissing(maps.Delete(ctx, m.Name, metav1.DeleteOptions{})); err != nil {
			return fmt.Errorf("delete ConfigMap %s/%s: %w", namespace, m.Name, err)
		}
	}
	leases, err := c.CoordinationV1().Leases(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, l := range leases.Items {
		if strings.HasPrefix(l.Name, "weftd-") {
			if err := ignoreMissing(c.CoordinationV1().Leases(namespace).Delete(ctx, l.Name, metav1.DeleteOptions{})); err != nil {
				return fmt.Errorf("delete lease %s: %w", l.Name, err)
			}
		}
	}
	return nil
}

// purge removes what a plain uninstallation keeps. Another mesh keeps what it shares with this one.
func (c *Cluster) purge(ctx context.Context, r *Removal, o UninstallOptions) error {
	began := time.Now()
	const component = "Definitions, certificate authority"
	if len(r.Foreign) > 0 {
		o.Progress.Note("the definitions, your mesh objects and the certificate authority stay: control plane " + strings.Join(r.Foreign, ", ") + " uses them")
		return nil
	}
	o.Progress.Begin(component, "removing")
	for _, name := range r.Kinds {
		if err := ignoreMissing(c.Dynamic.Resource(crdResource).Delete(ctx, name, metav1.DeleteOptions{})); err != nil {
			return fmt.Errorf("delete CRD %s: %w", name, err)
		}
	}
	if err := ignoreMissing(c.CoreV1().Secrets(r.Namespace).Delete(ctx, "istio-ca-secret", metav1.DeleteOptions{})); err != nil {
		return fmt.Errorf("delete the certificate authority: %w", err)
	}
	roots, err := c.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=istio-ca-root-cert"})
	if err != nil {
		return fmt.Errorf("list ConfigMaps istio-ca-root-cert: %w", err)
	}
	for _, m := range roots.Items {
		if err := ignoreMissing(c.CoreV1().ConfigMaps(m.Namespace).Delete(ctx, m.Name, metav1.DeleteOptions{})); err != nil {
			return fmt.Errorf("delete ConfigMap %s/%s: %w", m.Namespace, m.Name, err)
		}
	}
	if err := c.waitGone(ctx, r.Kinds, o.Timeout); err != nil {
		return err
	}
	o.Progress.Done(component, time.Since(began))
	return nil
}

// waitGone waits for definitions to go: each takes its objects along, and an installation right afterwards would meet a definition that is
// being deleted.
func (c *Cluster) waitGone(ctx context.Context, kinds []string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, max(limit, requestTimeout))
	defer cancel()
	for _, name := range kinds {
		for {
			_, err := c.Dynamic.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				break
			}
			if pause(ctx, lookEvery) != nil {
				return fmt.Errorf("CRD %s does not go: an object of it has a finalizer that nobody removes (kubectl get %s -A)", name, name)
			}
		}
	}
	return nil
}
