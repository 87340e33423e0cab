package cluster

import (
	"context"
	"maps"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-mesh/weft/identity"
)

// rootConfigMap stands in every namespace, and sidecars mount it (Istio's name).
const rootConfigMap = "istio-ca-root-cert"

// keepRoots writes the mesh's roots into every namespace, whatever discoverySelectors say: a pod
// whose volume is missing would wait for ever. What others change or delete is restored.
func (c *Cluster) keepRoots(ctx context.Context, l Leadership) {
	q := newQueue()
	enqueue := handler(func(o metav1.Object) {
		if o.GetNamespace() != "" {
			q.Add(o.GetNamespace())
		} else {
			q.Add(o.GetName())
		}
	})
	existing, followMaps := cache.NewInformerWithOptions(cache.InformerOptions{
		ObjectType: &corev1.ConfigMap{}, Handler: enqueue, Transform: lean,
		ListerWatcher: listWatch(c.core.ConfigMaps(metav1.NamespaceAll), named(rootConfigMap)),
	})
	namespaces, followNamespaces := cache.NewInformerWithOptions(cache.InformerOptions{
		ObjectType: &metav1.PartialObjectMetadata{}, Handler: enqueue, Transform: lean,
		ListerWatcher: listWatch(c.metadata.Resource(corev1.SchemeGroupVersion.WithResource("namespaces")), metav1.ListOptions{}),
	})

	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { followMaps.RunWithContext(ctx) })
	running.Go(func() { followNamespaces.RunWithContext(ctx) })
	running.Go(func() {
		l.followAuthority(ctx, func() {
			for _, name := range namespaces.ListKeys() {
				q.Add(name)
			}
		})
	})
	if !cache.WaitForCacheSync(ctx.Done(), followMaps.HasSynced, followNamespaces.HasSynced) {
		return
	}
	work(ctx, q, l.Log, "ConfigMap "+rootConfigMap, func(ctx context.Context, namespace string) error {
		o, exists, err := namespaces.GetByKey(namespace)
		if err != nil || !exists || o.(metav1.Object).GetDeletionTimestamp() != nil {
			return err
		}
		current, exists, err := existing.GetByKey(namespace + "/" + rootConfigMap)
		if err != nil {
			return err
		}
		if exists {
			return c.writeRoots(ctx, current.(*corev1.ConfigMap), l.Authority.Roots())
		}
		_, err = c.core.ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: rootConfigMap, Namespace: namespace, Labels: map[string]string{"istio.io/config": "true"}},
			Data:       identity.RootConfigMap(l.Authority.Roots()),
		}, metav1.CreateOptions{})
		switch {
		case apierrors.IsAlreadyExists(err): // the news of it is on its way
			return nil
		case apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause): // the namespace is going
			return nil
		}
		return err
	})
}

func (c *Cluster) writeRoots(ctx context.Context, current *corev1.ConfigMap, roots []byte) error {
	want := identity.RootConfigMap(roots)
	if maps.Equal(current.Data, want) {
		return nil
	}
	next := current.DeepCopy()
	next.Data = want
	_, err := c.core.ConfigMaps(next.Namespace).Update(ctx, next, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // the news of it is on its way
		return nil
	}
	return err
}

// handler calls f for every object that comes, changes or goes.
func handler(f func(metav1.Object)) cache.ResourceEventHandler {
	call := func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if m, ok := o.(metav1.Object); ok {
			f(m)
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: call, UpdateFunc: func(_, o any) { call(o) }, DeleteFunc: call}
}
