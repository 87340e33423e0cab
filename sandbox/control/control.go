package control

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"github.com/weft-mesh/weft/sandbox/api"
	"github.com/weft-mesh/weft/sandbox/store"
)

// Kubelet runs pods; pod.Runner is the real one.
type Kubelet interface {
	Start(pod *corev1.Pod) error
	Stop(ctx context.Context, uid types.UID, grace time.Duration) error
	Update(pod *corev1.Pod) error
	Refresh()
}

// Control runs the controllers of one sandbox.
type Control struct {
	API     *api.Server
	Kubelet Kubelet
	Node    string // name of the Node object pods are bound to
	// RootConfig is the data of the ConfigMap istio-ca-root-cert; nil until the mesh root exists.
	RootConfig func() map[string]string
	Log        *slog.Logger

	queue    workqueue.TypedRateLimitingInterface[store.Key]
	stopping sync.WaitGroup
	pods     *podWorkers
}

const workers = 8

// Run works until ctx ends, then returns when the workers have; pods are left running.
func (c *Control) Run(ctx context.Context) error {
	c.init()
	w := c.API.Store.Watch(nil)
	defer w.Stop()
	var wg sync.WaitGroup
	for range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for c.work(ctx) {
			}
		}()
	}
	for {
		batch, err := w.Next(ctx)
		if err != nil {
			break
		}
		for _, e := range batch {
			c.route(ctx, e)
		}
	}
	c.queue.ShutDown()
	wg.Wait()
	return nil
}

func (c *Control) init() {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	// The first retry comes quickly (the control plane may be starting), the last ones twice a minute.
	c.queue = workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[store.Key](200*time.Millisecond, 30*time.Second))
	c.pods = &podWorkers{control: c, running: map[types.UID]*runningPod{}}
}

// RootChanged makes every namespace's copy of the root certificate current.
func (c *Control) RootChanged() {
	for _, ns := range c.store().List("namespaces", "", nil) {
		c.queue.Add(store.KeyOf(ns))
	}
	// Pods that could not be created while there was no root need not wait for their back-off.
	for _, r := range []string{"replicasets.apps", "statefulsets.apps", "daemonsets.apps", "jobs.batch"} {
		for _, o := range c.store().List(r, "", nil) {
			c.queue.Forget(store.KeyOf(o))
			c.queue.Add(store.KeyOf(o))
		}
	}
}

func (c *Control) store() *store.Store { return c.API.Store }

func (c *Control) work(ctx context.Context) bool {
	key, stop := c.queue.Get()
	if stop {
		return false
	}
	defer c.queue.Done(key)
	if err := c.sync(ctx, key); err != nil && ctx.Err() == nil {
		c.Log.Debug("sync failed, will be tried again", "object", key.String(), "err", err)
		c.queue.AddRateLimited(key)
		return true
	}
	c.queue.Forget(key)
	return true
}

func (c *Control) sync(ctx context.Context, key store.Key) error {
	switch key.Resource {
	case "deployments.apps":
		return c.syncDeployment(ctx, key)
	case "replicasets.apps":
		return c.syncReplicaSet(ctx, key)
	case "statefulsets.apps":
		return c.syncStatefulSet(ctx, key)
	case "daemonsets.apps":
		return c.syncDaemonSet(ctx, key)
	case "jobs.batch":
		return c.syncJob(ctx, key)
	case "services":
		return c.syncEndpoints(ctx, key)
	case "namespaces":
		return c.syncNamespace(ctx, key)
	}
	return nil
}

// route says whose business a change is.
func (c *Control) route(ctx context.Context, e store.Event) {
	if !statusOnly(e) {
		c.queue.Add(e.Key)
	}
	if e.Type == store.Added && c.orphan(e.Object) {
		c.delete(e.Object)
	}
	for _, o := range []store.Object{e.Object, e.Old} {
		if o == nil {
			continue
		}
		if owner := metav1.GetControllerOf(o); owner != nil {
			if k, ok := store.Resource(owner.Kind); ok {
				c.queue.Add(store.Key{Resource: k.Resource(), Namespace: o.GetNamespace(), Name: owner.Name})
			}
		}
	}
	switch e.Key.Resource {
	case "pods":
		c.routePod(ctx, e)
	case "configmaps", "secrets":
		c.pods.refresh()
		c.queue.Add(store.Key{Resource: "namespaces", Name: e.Key.Namespace})
	}
	if e.Type == store.Deleted {
		c.collect(e.Object.GetUID(), e.Key.Namespace)
		if e.Key.Namespace != "" {
			c.queue.Add(store.Key{Resource: "namespaces", Name: e.Key.Namespace})
		}
	}
}

// statusOnly reports a change that an object's own controller has made itself. If it came back to it, a
// status that says why something failed would undo the back-off before the next try.
func statusOnly(e store.Event) bool {
	if e.Type != store.Modified || e.Old == nil {
		return false
	}
	old, now := e.Old, e.Object
	return old.GetGeneration() == now.GetGeneration() && old.GetDeletionTimestamp().Equal(now.GetDeletionTimestamp()) &&
		maps.Equal(old.GetLabels(), now.GetLabels()) && maps.Equal(old.GetAnnotations(), now.GetAnnotations())
}

func (c *Control) routePod(ctx context.Context, e store.Event) {
	for _, svc := range store.List[*corev1.Service](c.store(), "services", e.Key.Namespace, nil) {
		if len(svc.Spec.Selector) == 0 {
			continue
		}
		sel := labels.SelectorFromSet(svc.Spec.Selector)
		if sel.Matches(labels.Set(e.Object.GetLabels())) || (e.Old != nil && sel.Matches(labels.Set(e.Old.GetLabels()))) {
			c.queue.Add(store.KeyOf(svc))
		}
	}
	// A Deployment that recreates waits for the end of its old pods, which changes nothing of their ReplicaSet.
	if rs := c.parent(e.Object); rs != nil && (e.Type == store.Deleted || finished(e.Object.(*corev1.Pod))) {
		if top := c.parent(rs); top != nil {
			c.queue.Add(store.KeyOf(top))
		}
	}
	c.pods.route(ctx, e)
}

// collect deletes what a deleted object owned (Kubernetes: background garbage collection).
func (c *Control) collect(owner types.UID, namespace string) {
	for _, k := range store.Kinds {
		if !k.Namespaced {
			continue
		}
		for _, o := range c.store().List(k.Resource(), namespace, nil) {
			for _, ref := range o.GetOwnerReferences() {
				if ref.UID == owner {
					c.delete(o)
				}
			}
		}
	}
}

// orphan reports that an object's controller is gone already: a sync that
// was under way made it while its owner was being deleted.
func (c *Control) orphan(o store.Object) bool {
	ref := metav1.GetControllerOf(o)
	if ref == nil {
		return false
	}
	if _, known := store.Resource(ref.Kind); !known {
		return false
	}
	owner := c.parent(o)
	return owner == nil || owner.GetUID() != ref.UID
}

func (c *Control) delete(o store.Object) {
	if _, err := c.API.Delete(store.KeyOf(o), nil); err != nil && !apierrors.IsNotFound(err) {
		c.Log.Warn("cannot delete", "object", store.KeyOf(o).String(), "err", err)
	}
}

// ownedPods returns the pods a controller owns and that its selector matches,
// terminating ones included. A pod whose labels were changed so that the selector no longer
// matches is released: it lives on by itself and the controller makes another one.
func (c *Control) ownedPods(owner store.Object, selector *metav1.LabelSelector) ([]*corev1.Pod, error) {
	sel, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil, err
	}
	var out []*corev1.Pod
	for _, p := range store.List[*corev1.Pod](c.store(), "pods", owner.GetNamespace(), nil) {
		if ref := metav1.GetControllerOf(p); ref == nil || ref.UID != owner.GetUID() {
			continue
		}
		if sel.Matches(labels.Set(p.Labels)) {
			out = append(out, p)
			continue
		}
		if _, err := c.store().Update(store.KeyOf(p), func(o store.Object) error {
			o.SetOwnerReferences(nil)
			return nil
		}); err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	return out, nil
}

// createPod makes a pod from a template. A refusal becomes an event on the
// owner and on what owns that, because a user looks at the Deployment.
func (c *Control) createPod(ctx context.Context, owner store.Object, name string, template *corev1.PodTemplateSpec, change func(*corev1.Pod)) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.GetNamespace(), Labels: map[string]string{}, Annotations: map[string]string{},
			OwnerReferences: []metav1.OwnerReference{ownerRef(owner)},
		},
		Spec: *template.Spec.DeepCopy(),
	}
	if name == "" {
		pod.GenerateName = owner.GetName() + "-"
	}
	pod.Name = name
	for k, v := range template.Labels {
		pod.Labels[k] = v
	}
	for k, v := range template.Annotations {
		pod.Annotations[k] = v
	}
	if change != nil {
		change(pod)
	}
	tell := func(kind, reason, message string) {
		c.Event(owner, kind, reason, message)
		if top := c.parent(owner); top != nil {
			c.Event(top, kind, reason, message)
		}
	}
	// A cluster's controllers keep what a webhook warns of to themselves.
	ctx = api.WithWarnings(ctx, func(text string) { tell(corev1.EventTypeWarning, "AdmissionWarning", text) })
	made, err := c.API.Create(ctx, pod)
	if err != nil {
		tell(corev1.EventTypeWarning, "FailedCreate", "Error creating: "+stripped(err))
		return err
	}
	c.Event(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: "+made.GetName())
	return nil
}

func stripped(err error) string {
	if s, ok := err.(apierrors.APIStatus); ok {
		return s.Status().Message
	}
	return err.Error()
}

func (c *Control) parent(o store.Object) store.Object {
	ref := metav1.GetControllerOf(o)
	if ref == nil {
		return nil
	}
	k, ok := store.Resource(ref.Kind)
	if !ok {
		return nil
	}
	return c.store().Get(store.Key{Resource: k.Resource(), Namespace: o.GetNamespace(), Name: ref.Name})
}

func ownerRef(o store.Object) metav1.OwnerReference {
	k, _ := store.KindFor(o)
	yes := true
	gv := k.Version
	if k.Group != "" {
		gv = k.Group + "/" + k.Version
	}
	return metav1.OwnerReference{APIVersion: gv, Kind: k.Kind, Name: o.GetName(), UID: o.GetUID(), Controller: &yes, BlockOwnerDeletion: &yes}
}

// Ready reports the pod's Ready condition.
func Ready(p *corev1.Pod) bool {
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

// finished reports that a pod's containers ended and will not be started again.
func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func active(p *corev1.Pod) bool { return p.DeletionTimestamp == nil && !finished(p) }
