package control

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-mesh/weft/sandbox/store"
)

// syncDaemonSet keeps one pod on the sandbox's one node, if its nodeSelector matches.
func (c *Control) syncDaemonSet(ctx context.Context, key store.Key) error {
	d := store.Get[*appsv1.DaemonSet](c.store(), key.Resource, key.Namespace, key.Name)
	if d == nil {
		return nil
	}
	pods, err := c.ownedPods(d, d.Spec.Selector)
	if err != nil {
		return err
	}
	hash := templateHash(&d.Spec.Template)
	wanted := c.fits(d.Spec.Template.Spec.NodeSelector)
	st := appsv1.DaemonSetStatus{ObservedGeneration: d.Generation}
	if wanted {
		st.DesiredNumberScheduled = 1
	}
	alive := false
	for _, p := range pods {
		outdated := p.Labels[appsv1.ControllerRevisionHashLabelKey] != hash && d.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType
		if p.DeletionTimestamp == nil && (finished(p) || outdated || !wanted || alive) {
			c.delete(p)
		}
		// The next pod waits until the old one has gone: both could want the same host port.
		alive = true
		if active(p) {
			st.CurrentNumberScheduled = 1
			if !outdated {
				st.UpdatedNumberScheduled = 1
			}
			if Ready(p) {
				st.NumberReady, st.NumberAvailable = 1, 1
			}
		}
	}
	st.NumberUnavailable = st.DesiredNumberScheduled - st.NumberAvailable
	var failure error
	if wanted && !alive {
		failure = c.createPod(ctx, d, "", &d.Spec.Template, func(p *corev1.Pod) {
			p.Labels[appsv1.ControllerRevisionHashLabelKey] = hash
		})
	}
	if err := c.status(d, func(o store.Object) { o.(*appsv1.DaemonSet).Status = st }); err != nil {
		return err
	}
	return failure
}

// fits reports whether the sandbox's node has these labels.
func (c *Control) fits(nodeSelector map[string]string) bool {
	if len(nodeSelector) == 0 {
		return true
	}
	n := store.Get[*corev1.Node](c.store(), "nodes", "", c.Node)
	return n != nil && labels.SelectorFromSet(nodeSelector).Matches(labels.Set(n.Labels))
}
