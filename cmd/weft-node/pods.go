package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-mesh/weft/cni/node"
	"github.com/weft-mesh/weft/redirect"
)

// mirror is on pods that kubelet made of a file on the node; its value is the UID that kubelet gives to plugins.
const mirror = corev1.MirrorPodAnnotationKey

// podWatch is node.Pods over the API server: the pods that are bound to this node, and of each only what is needed. Every request has a field
// selector for the node, so that an authorizer that looks at selectors can hold it to that.
type podWatch struct {
	api      corev1client.PodsGetter
	node     string
	informer cache.SharedInformer

	mu   sync.Mutex
	next chan struct{}   // closed at the next change
	look chan<- struct{} // a change for whoever repairs
}

// newPodWatch tells look of every change; look has room for one.
func newPodWatch(api corev1client.PodsGetter, nodeName string, look chan<- struct{}) (*podWatch, error) {
	w := &podWatch{api: api, node: nodeName, next: make(chan struct{}), look: look}
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = w.selector("")
			return api.Pods("").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = w.selector("")
			return api.Pods("").Watch(ctx, o)
		},
	}
	w.informer = cache.NewSharedInformer(cache.ToListWatcherWithWatchListSemantics(source, api), &corev1.Pod{}, 0)
	if err := w.informer.SetTransform(onlyNeeded); err != nil {
		return nil, err
	}
	_, err := w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { w.changed() },
		UpdateFunc: func(any, any) { w.changed() },
		DeleteFunc: func(any) { w.changed() },
	})
	return w, err
}

func (w *podWatch) selector(name string) string {
	set := fields.Set{"spec.nodeName": w.node}
	if name != "" {
		set["metadata.name"] = name
	}
	return set.String()
}

// onlyNeeded keeps a pod's memory at a few hundred bytes.
func onlyNeeded(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	small := &corev1.Pod{}
	small.Namespace, small.Name, small.UID, small.ResourceVersion = p.Namespace, p.Name, p.UID, p.ResourceVersion
	small.Spec.HostNetwork = p.Spec.HostNetwork
	for _, key := range []string{redirect.Annotation, mirror} {
		if v, ok := p.Annotations[key]; ok {
			if small.Annotations == nil {
				small.Annotations = map[string]string{}
			}
			small.Annotations[key] = v
		}
	}
	return small, nil
}

func (w *podWatch) changed() {
	w.mu.Lock()
	close(w.next)
	w.next = make(chan struct{})
	w.mu.Unlock()
	wake(w.look)
}

// wake tells a channel with room for one that something changed.
func wake(look chan<- struct{}) {
	select {
	case look <- struct{}{}:
	default:
	}
}

// Pod looks into the watch's memory, asks the API server once when the pod is not there yet, and then waits for the watch.
func (w *podWatch) Pod(ctx context.Context, namespace, name, uid string) (node.Pod, error) {
	asked := false
	for {
		w.mu.Lock()
		next := w.next
		w.mu.Unlock()
		if o, ok, err := w.informer.GetStore().GetByKey(namespace + "/" + name); err == nil && ok {
			if p, ok := match(o.(*corev1.Pod), uid); ok {
				return p, nil
			}
		}
		if !asked {
			asked = true
			if p, ok := w.ask(ctx, namespace, name, uid); ok {
				return p, nil
			}
			continue
		}
		select {
		case <-ctx.Done():
			return node.Pod{}, fmt.Errorf("no such pod with uid %q on node %s, says the API server (cache synced: %t)", uid, w.node, w.informer.HasSynced())
		case <-next:
		}
	}
}

func (w *podWatch) ask(ctx context.Context, namespace, name, uid string) (node.Pod, bool) {
	ctx, stop := context.WithTimeout(ctx, 2*time.Second)
	defer stop()
	list, err := w.api.Pods(namespace).List(ctx, metav1.ListOptions{FieldSelector: w.selector(name)})
	if err != nil {
		return node.Pod{}, false // the watch may still bring it
	}
	for i := range list.Items {
		if p, ok := match(&list.Items[i], uid); ok && p.Name == name {
			return p, true
		}
	}
	return node.Pod{}, false
}

func match(p *corev1.Pod, uid string) (node.Pod, bool) {
	hash, static := p.Annotations[mirror]
	if uid != "" && p.UID != types.UID(uid) && hash != uid {
		return node.Pod{}, false
	}
	text, injected := p.Annotations[redirect.Annotation]
	// A static pod runs as its file says, whatever admission made of its mirror.
	return node.Pod{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Redirect: text, Injected: injected && !static, HostNetwork: p.Spec.HostNetwork}, true
}
