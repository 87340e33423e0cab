package control

import (
	"context"
	"sort"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/sandbox/store"
)

// syncReplicaSet makes as many pods as spec.replicas says.
func (c *Control) syncReplicaSet(ctx context.Context, key store.Key) error {
	rs := store.Get[*appsv1.ReplicaSet](c.store(), key.Resource, key.Namespace, key.Name)
	if rs == nil {
		return nil
	}
	pods, err := c.ownedPods(rs, rs.Spec.Selector)
	if err != nil {
		return err
	}
	var live []*corev1.Pod
	for _, p := range pods {
		if finished(p) && p.DeletionTimestamp == nil {
			// A pod with restartPolicy Always only ends when it was evicted: replace it.
			c.delete(p)
			continue
		}
		if active(p) {
			live = append(live, p)
		}
	}
	want := int(*rs.Spec.Replicas)
	var failure error
	for n := len(live); n < want && failure == nil; n++ {
		failure = c.createPod(ctx, rs, "", &rs.Spec.Template, nil)
	}
	if over := len(live) - want; over > 0 {
		sort.SliceStable(live, func(i, j int) bool { return expendable(live[i], live[j]) })
		for _, p := range live[:over] {
			c.delete(p)
			c.Event(rs, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: "+p.Name)
		}
	}
	if err := c.replicaSetStatus(rs, failure); err != nil {
		return err
	}
	return failure
}

// expendable orders pods as Kubernetes does before it deletes some: not ready before ready, young before old.
func expendable(a, b *corev1.Pod) bool {
	if Ready(a) != Ready(b) {
		return !Ready(a)
	}
	if a.Status.Phase != b.Status.Phase {
		return a.Status.Phase == corev1.PodPending
	}
	return b.CreationTimestamp.Before(&a.CreationTimestamp)
}

func (c *Control) replicaSetStatus(rs *appsv1.ReplicaSet, failure error) error {
	pods, err := c.ownedPods(rs, rs.Spec.Selector)
	if err != nil {
		return err
	}
	st := appsv1.ReplicaSetStatus{ObservedGeneration: rs.Generation}
	for _, p := range pods {
		if !active(p) {
			continue
		}
		st.Replicas++
		st.FullyLabeledReplicas++
		if Ready(p) {
			st.ReadyReplicas++
			st.AvailableReplicas++
		}
	}
	if failure != nil {
		cond := appsv1.ReplicaSetCondition{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: stripped(failure)}
		for _, c := range rs.Status.Conditions {
			if c.Type == cond.Type && c.Message == cond.Message {
				cond.LastTransitionTime = c.LastTransitionTime
			}
		}
		if cond.LastTransitionTime.IsZero() {
			cond.LastTransitionTime = metav1.NewTime(time.Now().Truncate(time.Second))
		}
		st.Conditions = append(st.Conditions, cond)
	}
	return c.status(rs, func(o store.Object) { o.(*appsv1.ReplicaSet).Status = st })
}

func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
