package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/sandbox/store"
)

// podWorkers hands pods to the kubelet side: a pod that appears is bound to the
// node and started; one that is marked for deletion is stopped, while the
// endpoints controller takes it out of the endpoints, and then leaves the store.
type podWorkers struct {
	control *Control
	mu      sync.Mutex
	running map[types.UID]*runningPod
	pending *time.Timer // a Refresh that is due
}

type runningPod struct {
	started bool
	grace   int64              // of the stop under way
	hurry   context.CancelFunc // cuts the grace of the stop under way
}

func (w *podWorkers) route(ctx context.Context, e store.Event) {
	pod := e.Object.(*corev1.Pod)
	if e.Type == store.Deleted {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.running[pod.UID]
	if pod.DeletionTimestamp != nil {
		grace := int64(0)
		if pod.DeletionGracePeriodSeconds != nil {
			grace = *pod.DeletionGracePeriodSeconds
		}
		switch {
		case r == nil:
			r = &runningPod{}
			w.running[pod.UID] = r
		case r.hurry != nil && grace >= r.grace:
			return // being stopped already
		case r.hurry != nil:
			r.hurry()
			r.grace = grace
			return
		}
		stop, hurry := context.WithCancel(context.WithoutCancel(ctx))
		r.grace, r.hurry = grace, hurry
		w.control.stopping.Add(1)
		go w.stop(stop, pod, r)
		return
	}
	if r == nil {
		w.running[pod.UID] = &runningPod{}
		r = w.running[pod.UID]
	}
	if !r.started {
		r.started = w.start(pod)
		return
	}
	if e.Old != nil && (!maps.Equal(e.Old.GetLabels(), pod.Labels) || !maps.Equal(e.Old.GetAnnotations(), pod.Annotations)) {
		if err := w.control.Kubelet.Update(pod); err != nil {
			w.control.Log.Warn("cannot update a running pod", "pod", pod.Namespace+"/"+pod.Name, "err", err)
		}
	}
}

// start binds and starts a pod; false means that it fits nowhere, for now.
func (w *podWorkers) start(pod *corev1.Pod) bool {
	c := w.control
	if !c.fits(pod.Spec.NodeSelector) {
		c.Event(pod, corev1.EventTypeWarning, "FailedScheduling", fmt.Sprintf("the sandbox's node %s does not match the pod's nodeSelector %s", c.Node, labels.Set(pod.Spec.NodeSelector)))
		return false
	}
	bound, err := c.store().Update(store.KeyOf(pod), func(o store.Object) error {
		p := o.(*corev1.Pod)
		p.Spec.NodeName = c.Node
		setCondition(&p.Status, corev1.PodScheduled)
		return nil
	})
	if err != nil {
		return false // deleted meanwhile; its event follows
	}
	c.Event(pod, corev1.EventTypeNormal, "Scheduled", fmt.Sprintf("Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, c.Node))
	if err := c.Kubelet.Start(bound.(*corev1.Pod)); err != nil {
		c.Event(pod, corev1.EventTypeWarning, "Failed", err.Error())
		c.SetPodStatus(pod, corev1.PodStatus{Phase: corev1.PodFailed, Reason: "StartError", Message: err.Error()})
	}
	return true
}

func (w *podWorkers) stop(ctx context.Context, pod *corev1.Pod, r *runningPod) {
	c := w.control
	defer c.stopping.Done()
	defer r.hurry()
	// The endpoints controller and kubelet see the deletion at the same moment and wait for nobody, as on a cluster: for a while,
	// requests still come to a pod that was told to stop.
	if r.started {
		c.Event(pod, corev1.EventTypeNormal, "Killing", "Stopping the pod's containers")
		if err := c.Kubelet.Stop(ctx, pod.UID, time.Duration(r.grace)*time.Second); err != nil && !errors.Is(err, context.Canceled) {
			c.Log.Warn("stopping a pod", "pod", pod.Namespace+"/"+pod.Name, "err", err)
		}
	}
	w.mu.Lock()
	delete(w.running, pod.UID)
	w.mu.Unlock()
	c.store().Remove(store.KeyOf(pod))
}

// refresh projects changed ConfigMaps and Secrets into running pods, gathering a burst of changes.
func (w *podWorkers) refresh() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending != nil {
		return
	}
	w.pending = time.AfterFunc(20*time.Millisecond, func() {
		w.mu.Lock()
		w.pending = nil
		w.mu.Unlock()
		w.control.Kubelet.Refresh()
	})
}

// SetPodStatus stores what the kubelet side reports. It belongs in pod.Config.Status.
func (c *Control) SetPodStatus(pod *corev1.Pod, st corev1.PodStatus) {
	_, err := c.store().Update(store.KeyOf(pod), func(o store.Object) error {
		p := o.(*corev1.Pod)
		if p.UID != pod.UID {
			return nil // a later pod of the same name
		}
		p.Status = *st.DeepCopy()
		setCondition(&p.Status, corev1.PodScheduled)
		return nil
	})
	if ignoreGone(err) != nil {
		c.Log.Warn("cannot store a pod's status", "pod", pod.Namespace+"/"+pod.Name, "err", err)
	}
}

// setCondition adds a condition that is simply true, if it is not there.
func setCondition(st *corev1.PodStatus, t corev1.PodConditionType) {
	for _, c := range st.Conditions {
		if c.Type == t {
			return
		}
	}
	at := metav1.NewTime(time.Now().Truncate(time.Second))
	if st.StartTime != nil {
		at = *st.StartTime
	}
	st.Conditions = append(st.Conditions, corev1.PodCondition{Type: t, Status: corev1.ConditionTrue, LastTransitionTime: at})
}

// Drain waits until every pod that is being stopped has gone, and cuts their
// grace short after limit. Run must have returned.
func (c *Control) Drain(limit time.Duration) {
	t := time.AfterFunc(limit, func() {
		c.pods.mu.Lock()
		defer c.pods.mu.Unlock()
		for _, r := range c.pods.running {
			if r.hurry != nil {
				r.hurry()
			}
		}
	})
	defer t.Stop()
	c.stopping.Wait()
}
