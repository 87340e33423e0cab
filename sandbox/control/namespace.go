package control

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/sandbox/store"
)

// RootConfigMap is Istio's name for the ConfigMap that carries the mesh root into each namespace.
const RootConfigMap = "istio-ca-root-cert"

// syncNamespace gives a namespace what every namespace has, or empties it when it is to go.
func (c *Control) syncNamespace(ctx context.Context, key store.Key) error {
	ns := store.Get[*corev1.Namespace](c.store(), "namespaces", "", key.Name)
	if ns == nil {
		return nil
	}
	if ns.DeletionTimestamp != nil {
		return c.emptyNamespace(ns)
	}
	if _, err := c.API.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "default"}}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	if c.RootConfig == nil {
		return nil
	}
	data := c.RootConfig()
	if data == nil {
		return nil
	}
	_, err := c.store().Update(store.Key{Resource: "configmaps", Namespace: ns.Name, Name: RootConfigMap}, func(o store.Object) error {
		o.(*corev1.ConfigMap).Data = data
		return nil
	})
	if apierrors.IsNotFound(err) {
		_, err = c.API.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: RootConfigMap, Labels: map[string]string{"istio.io/config": "true"}},
			Data:       data,
		})
	}
	return err
}

// emptyNamespace deletes everything in a namespace, owners before what they
// own, and the namespace itself when nothing is left.
func (c *Control) emptyNamespace(ns *corev1.Namespace) error {
	left := 0
	for _, k := range store.Kinds {
		if !k.Namespaced || k.Plural == "events" {
			continue
		}
		for _, o := range c.store().List(k.Resource(), ns.Name, nil) {
			left++
			if o.GetDeletionTimestamp() == nil {
				c.delete(o)
			}
		}
	}
	if left > 0 {
		return nil // each removal brings us back here
	}
	for _, o := range c.store().List("events", ns.Name, nil) {
		c.store().Remove(store.KeyOf(o))
	}
	c.store().Remove(store.KeyOf(ns))
	return nil
}
