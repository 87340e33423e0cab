package install

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Outdated are workloads of one kind in one namespace with pods that would get another sidecar today.
type Outdated struct {
	Namespace, Kind string // "Deployment", "StatefulSet", "DaemonSet"
	Pods            int
}

// Outdated finds the pods of a revision whose sidecar is not what injection gives them now: by image, environment, volumes, probes or anything else. It asks the API
// server for a pod of each workload once more, by a dry run, so that everything that decides on a sidecar has its say. Pods that no controller would make again are passed over.
func (c *Cluster) Outdated(ctx context.Context, revision string) ([]Outdated, error) {
	pods, err := c.meshPods(ctx)
	if err != nil {
		return nil, err
	}
	today := map[types.UID]*corev1.Pod{}
	found := map[Outdated]int{}
	for _, p := range pods {
		by := metav1.GetControllerOf(p)
		if by == nil || p.DeletionTimestamp != nil || suffix(p.revision) != suffix(revision) {
			continue
		}
		like := p.UID
		if by.Kind == "ReplicaSet" {
			like = by.UID // its pods are all the same
		}
		now, asked := today[like]
		if !asked {
			if now, err = c.madeToday(ctx, p.Pod, by); err != nil {
				return nil, err
			}
			today[like] = now
		}
		if now != nil && proxyOf(now) != "" && !sameSidecar(p.Pod, now) {
			kind := by.Kind
			if kind == "ReplicaSet" {
				kind = "Deployment"
			}
			found[Outdated{Namespace: p.Namespace, Kind: kind}]++
		}
	}
	var out []Outdated
	for o, n := range found {
		o.Pods = n
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b Outdated) int { return strings.Compare(a.Namespace+"/"+a.Kind, b.Namespace+"/"+b.Kind) })
	return out, nil
}

// madeToday is the pod that the controller of this one would get today, nil where nobody knows: the controller is gone or of a kind that does not renew its
// pods, or the pod would be refused, of which verify-install tells more.
func (c *Cluster) madeToday(ctx context.Context, p *corev1.Pod, by *metav1.OwnerReference) (*corev1.Pod, error) {
	var template corev1.PodTemplateSpec
	var err error
	switch by.Kind {
	case "ReplicaSet":
		o, e := c.AppsV1().ReplicaSets(p.Namespace).Get(ctx, by.Name, metav1.GetOptions{})
		template, err = o.Spec.Template, e
	case "StatefulSet":
		o, e := c.AppsV1().StatefulSets(p.Namespace).Get(ctx, by.Name, metav1.GetOptions{})
		template, err = o.Spec.Template, e
	case "DaemonSet":
		o, e := c.AppsV1().DaemonSets(p.Namespace).Get(ctx, by.Name, metav1.GetOptions{})
		template, err = o.Spec.Template, e
	default:
		return nil, nil
	}
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s/%s: %w", by.Kind, p.Namespace, by.Name, err)
	}
	// As the controller does: the sidecar knows its pod's owner and labels, and claims are among the volumes.
	next := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	next.Name, next.GenerateName, next.Namespace, next.OwnerReferences = "", by.Name+"-", p.Namespace, p.OwnerReferences
	next.Labels = maps.Clone(template.Labels)
	for _, added := range []string{"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index", "controller-revision-hash", "pod-template-generation"} {
		if value, ok := p.Labels[added]; ok {
			next.Labels[added] = value
		}
	}
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim != nil && !slices.ContainsFunc(next.Spec.Volumes, func(have corev1.Volume) bool { return have.Name == v.Name }) {
			next.Spec.Volumes = append(slices.Clip(next.Spec.Volumes), v)
		}
	}
	made, err := c.CoreV1().Pods(p.Namespace).Create(ctx, next, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return nil, ctx.Err()
	}
	return made, nil
}

// sameSidecar compares the sidecars of two pods, and the volumes that they mount.
func sameSidecar(a, b *corev1.Pod) bool {
	mine, myVolumes := sidecarOf(a)
	other, otherVolumes := sidecarOf(b)
	return equality.Semantic.DeepEqual(mine, other) && equality.Semantic.DeepEqual(myVolumes, otherVolumes)
}

// sidecarOf is a pod's sidecar and its volumes, but for that of the account's token, which has another name in each pod.
func sidecarOf(p *corev1.Pod) (proxy corev1.Container, volumes []corev1.Volume) {
	if k := proxyIn(p); k != nil {
		proxy = *k.DeepCopy()
	}
	proxy.VolumeMounts = slices.DeleteFunc(proxy.VolumeMounts, func(m corev1.VolumeMount) bool { return strings.HasPrefix(m.Name, "kube-api-access-") })
	for _, v := range p.Spec.Volumes {
		if slices.ContainsFunc(proxy.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name }) {
			volumes = append(volumes, v)
		}
	}
	return proxy, volumes
}

// RenewalSteps say how pods get the sidecar of now.
func (c *Cluster) RenewalSteps(ctx context.Context, revision string) ([]string, error) {
	outdated, err := c.Outdated(ctx, revision)
	if err != nil || len(outdated) == 0 {
		return nil, err
	}
	n := 0
	var restarts []string
	for _, o := range outdated {
		n += o.Pods
		restarts = append(restarts, fmt.Sprintf("  kubectl rollout restart %s -n %s", strings.ToLower(o.Kind), o.Namespace))
	}
	return append([]string{"", fmt.Sprintf("%d pods run with the sidecar of before; they go on working. When it suits you:", n)}, restarts...), nil
}
