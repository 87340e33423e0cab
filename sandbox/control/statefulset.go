package control

import (
	"context"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/sandbox/store"
)

// syncStatefulSet keeps pods NAME-0 ... NAME-(replicas-1), one after the other
// unless podManagementPolicy is Parallel, and replaces those of an old template
// from the highest ordinal down.
func (c *Control) syncStatefulSet(ctx context.Context, key store.Key) error {
	s := store.Get[*appsv1.StatefulSet](c.store(), key.Resource, key.Namespace, key.Name)
	if s == nil {
		return nil
	}
	pods, err := c.ownedPods(s, s.Spec.Selector)
	if err != nil {
		return err
	}
	byOrdinal := map[int]*corev1.Pod{}
	highest := -1
	for _, p := range pods {
		if n, ok := ordinal(s.Name, p.Name); ok {
			byOrdinal[n] = p
			highest = max(highest, n)
		}
	}
	current := s.Name + "-" + templateHash(&s.Spec.Template)
	step := c.stepStatefulSet(ctx, s, current, byOrdinal, highest)
	if err := c.statefulSetStatus(s, current); err != nil {
		return err
	}
	return step
}

func ordinal(set, pod string) (int, bool) {
	suffix, ok := strings.CutPrefix(pod, set+"-")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(suffix)
	return n, err == nil && n >= 0
}

func (c *Control) stepStatefulSet(ctx context.Context, s *appsv1.StatefulSet, current string, pods map[int]*corev1.Pod, highest int) error {
	ordered := s.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
	want, first := int(*s.Spec.Replicas), 0
	if s.Spec.Ordinals != nil {
		first = int(s.Spec.Ordinals.Start)
	}
	for n := first; n < first+want; n++ {
		p := pods[n]
		switch {
		case p == nil:
			if err := c.createPod(ctx, s, s.Name+"-"+strconv.Itoa(n), &s.Spec.Template, func(p *corev1.Pod) { identify(s, current, n, p) }); err != nil {
				return err
			}
			if ordered {
				return nil
			}
		case p.DeletionTimestamp == nil && finished(p):
			c.delete(p)
			return nil
		case ordered && (p.DeletionTimestamp != nil || !Ready(p)):
			// A broken pod of an old template is replaced all the same, or a bad update could never be repaired.
			if p.DeletionTimestamp == nil && p.Labels[appsv1.ControllerRevisionHashLabelKey] != current && s.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
				c.delete(p)
			}
			return nil
		}
	}
	for n := highest; n >= 0; n-- {
		if p := pods[n]; p != nil && (n < first || n >= first+want) {
			if p.DeletionTimestamp == nil {
				c.delete(p)
			}
			if ordered {
				return nil
			}
		}
	}
	if s.Spec.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		return nil
	}
	partition := 0
	if ru := s.Spec.UpdateStrategy.RollingUpdate; ru != nil && ru.Partition != nil {
		partition = int(*ru.Partition)
	}
	for n := first + want - 1; n >= first+partition; n-- {
		p := pods[n]
		if p == nil || p.DeletionTimestamp != nil {
			return nil
		}
		if p.Labels[appsv1.ControllerRevisionHashLabelKey] != current {
			c.delete(p)
			return nil
		}
		if !Ready(p) {
			return nil
		}
	}
	return nil
}

// identify gives a pod its stable name in DNS and the labels Kubernetes adds.
func identify(s *appsv1.StatefulSet, current string, n int, p *corev1.Pod) {
	p.Spec.Hostname = p.Name
	p.Spec.Subdomain = s.Spec.ServiceName
	p.Labels[appsv1.ControllerRevisionHashLabelKey] = current
	p.Labels[appsv1.StatefulSetPodNameLabel] = p.Name
	p.Labels[appsv1.PodIndexLabel] = strconv.Itoa(n)
}

func (c *Control) statefulSetStatus(s *appsv1.StatefulSet, current string) error {
	pods, err := c.ownedPods(s, s.Spec.Selector)
	if err != nil {
		return err
	}
	st := appsv1.StatefulSetStatus{ObservedGeneration: s.Generation, UpdateRevision: current, CurrentRevision: s.Status.CurrentRevision}
	for _, p := range pods {
		if !active(p) {
			continue
		}
		st.Replicas++
		if Ready(p) {
			st.ReadyReplicas++
			st.AvailableReplicas++
		}
		if p.Labels[appsv1.ControllerRevisionHashLabelKey] == current {
			st.UpdatedReplicas++
		}
	}
	st.CurrentReplicas = st.UpdatedReplicas
	if st.UpdatedReplicas == *s.Spec.Replicas && st.ReadyReplicas == *s.Spec.Replicas {
		st.CurrentRevision = current
	}
	return c.status(s, func(o store.Object) { o.(*appsv1.StatefulSet).Status = st })
}
