package control

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"sort"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/weft-mesh/weft/sandbox/store"
)

const revision = "deployment.kubernetes.io/revision"

// syncDeployment keeps one ReplicaSet per template and moves replicas from the
// old ones to the current one within maxSurge and maxUnavailable. Source of the
// arithmetic: Kubernetes pkg/controller/deployment/rolling.go.
func (c *Control) syncDeployment(ctx context.Context, key store.Key) error {
	d := store.Get[*appsv1.Deployment](c.store(), key.Resource, key.Namespace, key.Name)
	if d == nil {
		return nil
	}
	current, old := c.replicaSets(d)
	if current == nil {
		var err error
		if current, err = c.newReplicaSet(ctx, d, old); err != nil {
			return err
		}
	}
	if !d.Spec.Paused {
		var err error
		if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
			err = c.recreate(d, current, old)
		} else {
			err = c.roll(d, current, old)
		}
		if err != nil {
			return err
		}
	}
	return c.deploymentStatus(d)
}

// templateHash names a template; equal templates have equal hashes.
func templateHash(t *corev1.PodTemplateSpec) string {
	h := fnv.New32a()
	// A PodTemplateSpec has no value that JSON cannot hold.
	_ = json.NewEncoder(h).Encode(t)
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

func (c *Control) replicaSets(d *appsv1.Deployment) (current *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) {
	name := d.Name + "-" + templateHash(&d.Spec.Template)
	for _, rs := range store.List[*appsv1.ReplicaSet](c.store(), "replicasets.apps", d.Namespace, nil) {
		if ref := metav1.GetControllerOf(rs); ref == nil || ref.UID != d.UID {
			continue
		}
		if rs.Name == name {
			current = rs
		} else {
			old = append(old, rs)
		}
	}
	sort.Slice(old, func(i, j int) bool { return revisionOf(old[i]) < revisionOf(old[j]) })
	return current, old
}

func revisionOf(rs *appsv1.ReplicaSet) int {
	n, err := strconv.Atoi(rs.Annotations[revision])
	if err != nil {
		return 0
	}
	return n
}

func (c *Control) newReplicaSet(ctx context.Context, d *appsv1.Deployment, old []*appsv1.ReplicaSet) (*appsv1.ReplicaSet, error) {
	hash := templateHash(&d.Spec.Template)
	next := 1
	if len(old) > 0 {
		next = revisionOf(old[len(old)-1]) + 1
	}
	template := d.Spec.Template.DeepCopy()
	template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	sel := d.Spec.Selector.DeepCopy()
	sel.MatchLabels = withLabel(sel.MatchLabels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	zero := int32(0)
	made, err := c.API.Create(ctx, &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: d.Namespace, Name: d.Name + "-" + hash, Labels: template.Labels,
			Annotations: map[string]string{revision: strconv.Itoa(next)}, OwnerReferences: []metav1.OwnerReference{ownerRef(d)},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: &zero, Selector: sel, Template: *template},
	})
	if err != nil {
		return nil, err
	}
	if over := len(old) - int(*d.Spec.RevisionHistoryLimit); over > 0 {
		for _, rs := range old[:over] {
			if *rs.Spec.Replicas == 0 && rs.Status.Replicas == 0 {
				c.delete(rs)
			}
		}
	}
	return made.(*appsv1.ReplicaSet), nil
}

func withLabel(m map[string]string, k, v string) map[string]string {
	out := make(map[string]string, len(m)+1)
	for a, b := range m {
		out[a] = b
	}
	out[k] = v
	return out
}

func (c *Control) scale(d *appsv1.Deployment, rs *appsv1.ReplicaSet, to int32) error {
	from := *rs.Spec.Replicas
	if from == to {
		return nil
	}
	_, err := c.store().Update(store.KeyOf(rs), func(o store.Object) error {
		*o.(*appsv1.ReplicaSet).Spec.Replicas = to
		return nil
	})
	if err == nil {
		way := "up"
		if to < from {
			way = "down"
		}
		c.Event(d, corev1.EventTypeNormal, "ScalingReplicaSet", fmt.Sprintf("Scaled %s replica set %s from %d to %d", way, rs.Name, from, to))
	}
	return err
}

func (c *Control) recreate(d *appsv1.Deployment, current *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) error {
	left := int32(0)
	for _, rs := range old {
		if err := c.scale(d, rs, 0); err != nil {
			return err
		}
		for _, p := range store.List[*corev1.Pod](c.store(), "pods", d.Namespace, nil) {
			if ref := metav1.GetControllerOf(p); ref != nil && ref.UID == rs.UID && !finished(p) {
				left++
			}
		}
	}
	if left > 0 {
		return nil // the pods' end brings us back here
	}
	return c.scale(d, current, *d.Spec.Replicas)
}

func (c *Control) roll(d *appsv1.Deployment, current *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) error {
	want := *d.Spec.Replicas
	surge, unavailable := bounds(d)
	total, oldTotal := *current.Spec.Replicas, int32(0)
	for _, rs := range old {
		total += *rs.Spec.Replicas
		oldTotal += *rs.Spec.Replicas
	}
	to := *current.Spec.Replicas
	switch {
	case oldTotal == 0 || to > want:
		to = want
	case total < want+surge:
		to = min(want, to+want+surge-total)
	}
	if err := c.scale(d, current, to); err != nil {
		return err
	}
	if oldTotal == 0 {
		return nil
	}
	// Pods of old templates that do not work may go first: nobody uses them. Then as many as the available ones allow.
	minAvailable := want - unavailable
	available := c.available(current)
	budget := to + oldTotal - minAvailable - max(0, to-available)
	if budget <= 0 {
		return nil // pods that are to go already are still counted as available
	}
	for _, rs := range old {
		oldAvailable := c.available(rs)
		broken := min(*rs.Spec.Replicas-oldAvailable, budget)
		if broken > 0 {
			if err := c.scale(d, rs, *rs.Spec.Replicas-broken); err != nil {
				return err
			}
			budget -= broken
		}
		available += oldAvailable
	}
	spare := min(available-minAvailable, budget)
	for _, rs := range old {
		fresh := store.Get[*appsv1.ReplicaSet](c.store(), "replicasets.apps", rs.Namespace, rs.Name)
		if fresh == nil || spare <= 0 {
			continue
		}
		n := min(*fresh.Spec.Replicas, spare)
		if err := c.scale(d, fresh, *fresh.Spec.Replicas-n); err != nil {
			return err
		}
		spare -= n
	}
	return nil
}

// available counts ready pods now, not when a ReplicaSet's status was last written.
func (c *Control) available(rs *appsv1.ReplicaSet) (n int32) {
	for _, p := range store.List[*corev1.Pod](c.store(), "pods", rs.Namespace, nil) {
		if ref := metav1.GetControllerOf(p); ref != nil && ref.UID == rs.UID && active(p) && Ready(p) {
			n++
		}
	}
	return n
}

// bounds resolves maxSurge (rounded up) and maxUnavailable (rounded down); both 0 would never move, so one may be missing then.
func bounds(d *appsv1.Deployment) (surge, unavailable int32) {
	want := int(*d.Spec.Replicas)
	if ru := d.Spec.Strategy.RollingUpdate; ru != nil {
		if n, err := intstr.GetScaledValueFromIntOrPercent(ru.MaxSurge, want, true); err == nil {
			surge = int32(n)
		}
		if n, err := intstr.GetScaledValueFromIntOrPercent(ru.MaxUnavailable, want, false); err == nil {
			unavailable = int32(n)
		}
	}
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, min(unavailable, int32(want))
}

func (c *Control) deploymentStatus(d *appsv1.Deployment) error {
	current, old := c.replicaSets(d)
	if current == nil {
		return nil
	}
	st := appsv1.DeploymentStatus{ObservedGeneration: d.Generation, UpdatedReplicas: current.Status.Replicas}
	reason, msg := "", ""
	for _, rs := range append(old, current) {
		st.Replicas += rs.Status.Replicas
		st.ReadyReplicas += rs.Status.ReadyReplicas
		st.AvailableReplicas += rs.Status.AvailableReplicas
		for _, cond := range rs.Status.Conditions {
			if cond.Type == appsv1.ReplicaSetReplicaFailure && cond.Status == corev1.ConditionTrue {
				reason, msg = cond.Reason, cond.Message
			}
		}
	}
	want := *d.Spec.Replicas
	st.UnavailableReplicas = max(0, st.Replicas-st.AvailableReplicas)
	_, unavailable := bounds(d)
	cond := func(t appsv1.DeploymentConditionType, yes bool, reason, message string) appsv1.DeploymentCondition {
		s := corev1.ConditionFalse
		if yes {
			s = corev1.ConditionTrue
		}
		now := metav1.NewTime(time.Now().Truncate(time.Second))
		for _, c := range d.Status.Conditions {
			if c.Type == t && c.Status == s && c.Reason == reason && c.Message == message {
				return c
			}
			if c.Type == t && c.Status == s {
				return appsv1.DeploymentCondition{Type: t, Status: s, Reason: reason, Message: message, LastUpdateTime: now, LastTransitionTime: c.LastTransitionTime}
			}
		}
		return appsv1.DeploymentCondition{Type: t, Status: s, Reason: reason, Message: message, LastUpdateTime: now, LastTransitionTime: now}
	}
	if st.AvailableReplicas >= want-unavailable {
		st.Conditions = append(st.Conditions, cond(appsv1.DeploymentAvailable, true, "MinimumReplicasAvailable", "Deployment has minimum availability."))
	} else {
		st.Conditions = append(st.Conditions, cond(appsv1.DeploymentAvailable, false, "MinimumReplicasUnavailable", "Deployment does not have minimum availability."))
	}
	if reason != "" {
		st.Conditions = append(st.Conditions, cond(appsv1.DeploymentReplicaFailure, true, reason, msg))
	}
	if st.UpdatedReplicas == want && st.Replicas == want && st.AvailableReplicas == want {
		st.Conditions = append(st.Conditions, cond(appsv1.DeploymentProgressing, true, "NewReplicaSetAvailable", fmt.Sprintf("ReplicaSet %q has successfully progressed.", current.Name)))
	} else {
		st.Conditions = append(st.Conditions, cond(appsv1.DeploymentProgressing, true, "ReplicaSetUpdated", fmt.Sprintf("ReplicaSet %q is progressing.", current.Name)))
	}
	return c.status(d, func(o store.Object) { o.(*appsv1.Deployment).Status = st })
}

// status writes an object's status; that the object is gone is no fault.
func (c *Control) status(o store.Object, set func(store.Object)) error {
	_, err := c.store().Update(store.KeyOf(o), func(o store.Object) error {
		set(o)
		return nil
	})
	return ignoreGone(err)
}
