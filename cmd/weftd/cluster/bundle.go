package cluster

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

// revisionLabel tells whose a webhook configuration is (Istio API: label istio.io/rev).
const revisionLabel = "istio.io/rev"

// keepBundles writes the mesh's roots as caBundle into the webhook configurations of this revision,
// wherever they refer to this control plane's Service, so that the API server trusts its webhook.
func (c *Cluster) keepBundles(ctx context.Context, l Leadership) {
	q := newQueue()
	mutating, followMutating := followWebhooks(&admissionv1.MutatingWebhookConfiguration{}, c.admission.MutatingWebhookConfigurations(), l.Revision, func(name string) { q.Add("mutating/" + name) })
	validating, followValidating := followWebhooks(&admissionv1.ValidatingWebhookConfiguration{}, c.admission.ValidatingWebhookConfigurations(), l.Revision, func(name string) { q.Add("validating/" + name) })

	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { followMutating.RunWithContext(ctx) })
	running.Go(func() { followValidating.RunWithContext(ctx) })
	running.Go(func() {
		select {
		case <-l.Serving:
		case <-ctx.Done():
			return
		}
		for _, name := range validating.ListKeys() {
			q.Add("validating/" + name)
		}
	})
	running.Go(func() {
		l.followAuthority(ctx, func() {
			for _, name := range mutating.ListKeys() {
				q.Add("mutating/" + name)
			}
			for _, name := range validating.ListKeys() {
				q.Add("validating/" + name)
			}
		})
	})
	if !cache.WaitForCacheSync(ctx.Done(), followMutating.HasSynced, followValidating.HasSynced) {
		return
	}
	work(ctx, q, l.Log, "caBundle of a webhook configuration", func(ctx context.Context, key string) error {
		kind, name, _ := strings.Cut(key, "/")
		store := mutating
		if kind == "validating" {
			store = validating
		}
		o, exists, err := store.GetByKey(name)
		if err != nil || !exists {
			return err
		}
		switch o := o.(type) {
		case *admissionv1.MutatingWebhookConfiguration:
			o = o.DeepCopy()
			changed := false
			for i := range o.Webhooks {
				changed = l.sign(&o.Webhooks[i].ClientConfig) || changed
			}
			if changed {
				_, err = c.admission.MutatingWebhookConfigurations().Update(ctx, o, metav1.UpdateOptions{})
			}
		case *admissionv1.ValidatingWebhookConfiguration:
			o = o.DeepCopy()
			changed := false
			for i := range o.Webhooks {
				changed = l.sign(&o.Webhooks[i].ClientConfig) || changed
				changed = l.close(&o.Webhooks[i]) || changed
			}
			if changed {
				_, err = c.admission.ValidatingWebhookConfigurations().Update(ctx, o, metav1.UpdateOptions{})
			}
		}
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // the news of it is on its way
			return nil
		}
		return err
	})
}

// followWebhooks follows the webhook configurations of a revision; changed is called with their names.
func followWebhooks[List runtime.Object](kind runtime.Object, api objects[List], revision string, changed func(name string)) (cache.Store, cache.Controller) {
	selector := labels.SelectorFromSet(labels.Set{revisionLabel: revision}).String()
	return cache.NewInformerWithOptions(cache.InformerOptions{
		ObjectType: kind, Transform: lean,
		Handler:       handler(func(o metav1.Object) { changed(o.GetName()) }),
		ListerWatcher: listWatch(api, metav1.ListOptions{LabelSelector: selector}),
	})
}

// close makes mistakes in mesh objects errors also when nobody can look at them. Installations leave that open (failurePolicy: Ignore)
// for the time until a control plane serves, since it may be the first (Istio does the same).
func (l *Leadership) close(w *admissionv1.ValidatingWebhook) (changed bool) {
	if !l.ours(&w.ClientConfig) || w.FailurePolicy == nil || *w.FailurePolicy == admissionv1.Fail {
		return false
	}
	select {
	case <-l.Serving:
	default:
		return false
	}
	fail := admissionv1.Fail
	w.FailurePolicy = &fail
	return true
}

// sign makes the API server trust this mesh's root for a webhook of this control plane.
func (l *Leadership) sign(c *admissionv1.WebhookClientConfig) (changed bool) {
	if !l.ours(c) {
		return false
	}
	roots := l.Authority.Roots()
	if bytes.Equal(c.CABundle, roots) {
		return false
	}
	c.CABundle = roots
	return true
}

// ours reports whether a webhook is this control plane's. For one that is called by URL, who wrote the URL gives the bundle.
func (l *Leadership) ours(c *admissionv1.WebhookClientConfig) bool {
	return c.Service != nil && c.Service.Namespace == l.Namespace && slices.Contains(l.Services, c.Service.Name)
}
